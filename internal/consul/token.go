package consul

import (
	"os"
	"strings"
	"sync"
	"time"

	"github.com/pikoproxy/piko/internal/config"
)

// tokenCheck is how often the file of the token is looked at, at most.
const tokenCheck = 5 * time.Second

// tokens knows Consul's token of the moment. One that comes from a file is read again when the file changes and when
// Consul refuses it. It is safe for concurrent use.
type tokens struct {
	mu    sync.Mutex
	token string
	// fallback is what the environment says.
	fallback string
	file     config.File // "" when the token is fixed
	changed  time.Time   // of the file, when it was read
	checked  time.Time
}

func newTokens(c config.Consul, env environment) *tokens {
	t := &tokens{token: c.Token.Reveal(), file: c.TokenFile, fallback: env.token}
	if t.token == "" && t.file == "" {
		t.token, t.file = env.token, config.File(env.tokenFile)
	}
	return t
}

// get returns the token, or "" for none.
func (t *tokens) get() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := time.Now(); t.file != "" && now.Sub(t.checked) > tokenCheck {
		t.checked = now
		t.readLocked()
	}
	return t.token
}

// set replaces the token. It holds until its file, if there is one, changes. No token means that of the environment.
func (t *tokens) set(token string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if token == "" && t.file == "" {
		token = t.fallback
	}
	if token != "" {
		t.token = token
	}
}

// refused has the file looked at before the next request.
func (t *tokens) refused() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.checked, t.changed = time.Time{}, time.Time{}
}

// readLocked reads the file if it has changed. A file that cannot be read leaves the token as it is: it may be in the
// middle of being replaced. Reading regular files of at most a mebibyte under the lock holds nobody up for long.
func (t *tokens) readLocked() {
	info, err := os.Stat(string(t.file))
	if err != nil || info.ModTime().Equal(t.changed) {
		return
	}
	text, err := t.file.Read()
	if token := strings.TrimSpace(string(text)); err == nil && token != "" {
		t.token, t.changed = token, info.ModTime()
	}
}
