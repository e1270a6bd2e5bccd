package daemon

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pikoproxy/piko/internal/config"
)

// restarts names the changes that a running process can't take.
func restarts(changes []config.Change) error {
	var errs []error
	for _, c := range changes {
		if c.Live {
			continue
		}
		have := c.New
		if c.Old == c.New {
			have = "another one" // two secrets look the same
		}
		errs = append(errs, config.Problem{
			Key: c.Key, Want: c.Old + " until the process is restarted", Have: orNothing(have),
			Hint: "restart to change it, or take the change back",
		})
	}
	return errors.Join(errs...)
}

func orNothing(text string) string {
	if text == "" {
		return "nothing"
	}
	return text
}

// listedMost is how many keys a line of the log names.
const listedMost = 20

func listed(keys []string) string {
	if more := len(keys) - listedMost; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(keys[:listedMost], ", "), more)
	}
	return strings.Join(keys, ", ")
}
