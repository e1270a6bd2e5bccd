package diagnose

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

// claims are those of a JSON Web Token that this end can judge without the key.
type claims struct {
	Expires   *float64 `json:"exp"`
	NotBefore *float64 `json:"nbf"`
	Piko      struct {
		Endpoints []string `json:"endpoints"`
		Role      any      `json:"role"` // one, or a list
	} `json:"piko"`
}

// token looks at the token as far as that can be done without the key. Whether it is accepted, the handshake tells.
func (d *diagnosis) token() {
	text := d.settings.Connect.Token.Reveal()
	if text == "" {
		d.skip("token", "none is set")
		return
	}
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		d.fail("token", "put a JSON Web Token, and nothing else, into connect.token_file",
			"%d characters that are no JSON Web Token", len(text))
		return
	}
	var c claims
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err == nil {
		err = json.Unmarshal(raw, &c)
	}
	if err != nil {
		d.fail("token", "put the token into connect.token_file as it was given out", "its claims can't be read: %v", err)
		return
	}
	now := d.now()
	if c.NotBefore != nil && now.Before(instant(*c.NotBefore)) {
		d.fail("token", "set the clock of this host, or wait", "it holds from %s on; now it is %s",
			instant(*c.NotBefore).Format(time.RFC3339), now.UTC().Format(time.RFC3339))
		return
	}
	if c.Expires != nil && !now.Before(instant(*c.Expires)) {
		d.fail("token", "get a new one; the agent reads connect.token_file again by itself",
			"it ended at %s", instant(*c.Expires).Format(time.RFC3339))
		return
	}
	if !forAgents(c.Piko.Role) {
		d.fail("token", "get a token whose piko.role has agent, or is left out", "it is for the role %v", c.Piko.Role)
		return
	}
	if missing := d.notAllowed(c.Piko.Endpoints); len(missing) > 0 {
		d.fail("token", "get a token whose piko.endpoints has them too", "it does not allow the endpoints %s",
			strings.Join(missing, ", "))
		return
	}
	until := "for ever"
	if c.Expires != nil {
		until = "until " + instant(*c.Expires).Format(time.RFC3339)
	}
	d.pass("token", "a JSON Web Token that holds %s", until)
}

// forAgents reports whether a claim about roles lets an agent in.
func forAgents(role any) bool {
	list, ok := role.([]any)
	return role == nil || role == "agent" || ok && (len(list) == 0 || slices.Contains(list, any("agent")))
}

func instant(seconds float64) time.Time { return time.Unix(int64(seconds), 0).UTC() }

// notAllowed returns the endpoints of the settings that a list leaves out; an empty list leaves out none.
func (d *diagnosis) notAllowed(allowed []string) []string {
	if len(allowed) == 0 {
		return nil
	}
	var missing []string
	for _, l := range d.settings.Listeners {
		found := false
		for _, a := range allowed {
			prefix, wild := strings.CutSuffix(strings.ToLower(a), "*")
			name := strings.ToLower(l.Endpoint)
			found = found || name == prefix || wild && strings.HasPrefix(name, prefix)
		}
		if !found {
			missing = append(missing, l.Endpoint)
		}
	}
	return missing
}

// services tries whether the services can be reached.
func (d *diagnosis) services(ctx context.Context) {
	for _, l := range d.settings.Listeners {
		_, network, address := l.Addr.Split()
		name := "service"
		within, cancel := context.WithTimeout(ctx, stepTimeout)
		conn, err := (&net.Dialer{}).DialContext(within, network, address)
		cancel()
		if err != nil {
			d.fail(name, fmt.Sprintf("start the service, or correct addr of the listener %q", l.Endpoint), "%s: %v", l.Endpoint, err)
			continue
		}
		_ = conn.Close() // nothing was sent
		d.pass(name, "%s: %s answers", l.Endpoint, address)
	}
	if len(d.settings.Listeners) == 0 {
		d.fail("service", "add a [[listeners]] with endpoint and addr", "the settings offer nothing")
	}
}
