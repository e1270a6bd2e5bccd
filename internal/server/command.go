package server

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/daemon"
	"github.com/pikoproxy/piko/internal/fault"
)

const (
	askTimeout = 10 * time.Second
	askMax     = 64 << 20 // a node with very many endpoints
	tokenMax   = 64 << 10
)

// node is how a command reaches the admin listener of a node.
type node struct {
	url       string
	tokenFile string
}

func (n *node) flags(fs *flag.FlagSet) {
	fs.StringVar(&n.url, "admin", "",
		"`URL` of the node's admin listener, such as http://127.0.0.1:8002 or unix:/path; "+
			"without it the one in the settings of this host")
	fs.StringVar(&n.tokenFile, "token-file", "", "`FILE` with the token to present")
}

// get asks for a path and returns the body of the answer.
func (n *node) get(ctx context.Context, env daemon.Env, path string) ([]byte, error) {
	base, client, err := n.target(env)
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", base, err)
	}
	if err := n.authorize(req); err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the admin listener: %w: is pikod running, and is --admin right?", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, askMax))
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", base, err)
	}
	if resp.StatusCode != http.StatusOK {
		return body, &statusError{resp.StatusCode, resp.Status, reasonIn(body)}
	}
	return body, nil
}

// statusError is an answer other than 200.
type statusError struct {
	code           int
	status, reason string
}

// Error tells the status and, if the answer gave one, the reason.
func (e *statusError) Error() string {
	text := "the node answers " + e.status
	if e.reason != "" {
		text += ": " + e.reason
	}
	if e.code == http.StatusUnauthorized {
		text += ": give a token with --token-file"
	}
	return text
}

func reasonIn(body []byte) string {
	var answer struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return ""
	}
	return printable(answer.Error)
}

func (n *node) authorize(req *http.Request) error {
	if n.tokenFile == "" {
		return nil
	}
	f, err := os.Open(n.tokenFile)
	if err != nil {
		return fmt.Errorf("read the token: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read from
	token, err := io.ReadAll(io.LimitReader(f, tokenMax))
	if err != nil {
		return fmt.Errorf("read the token: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	return nil
}

// target returns the base of the admin URLs and a client that reaches it, never through a proxy.
func (n *node) target(env daemon.Env) (string, *http.Client, error) {
	base := n.url
	if base == "" {
		base = configured(env)
	}
	transport := &http.Transport{}
	client := &http.Client{
		Transport: transport,
		// A redirect would take the token along.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if path, ok := strings.CutPrefix(base, "unix:"); ok {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
		return "http://localhost", client, nil
	}
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", nil, fmt.Errorf("--admin %q: want http://HOST:PORT, https://HOST:PORT or unix:/PATH", base)
	}
	return strings.TrimSuffix(u.String(), "/"), client, nil
}

// configured is where the admin listener of this host is, by its settings. Settings that this user must not read are no
// reason to give up: the default is right nearly everywhere.
func configured(env daemon.Env) string {
	c, err := config.LoadPikod(env.ConfigFile(""))
	if err != nil {
		c = config.DefaultPikod()
	}
	network, address := c.Admin.Listen.Split()
	if network == "unix" {
		return "unix:" + address
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return string(config.DefaultPikod().Admin.Listen)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	scheme := "http"
	if c.Admin.TLS.Enabled() {
		scheme = "https"
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}

func healthCommand() daemon.Command {
	var n node
	var ready bool
	return daemon.Command{
		Name: "healthcheck", Usage: "[--ready] [--admin URL] [--token-file FILE]",
		Summary: "exit with 0 if the node on this host works",
		Flags: func(fs *flag.FlagSet) {
			n.flags(fs)
			fs.BoolVar(&ready, "ready", false, "ask whether it takes traffic, not only whether it works")
		},
		Run: func(ctx context.Context, env daemon.Env, args []string) int {
			if len(args) > 0 {
				return env.Usagef("healthcheck: unexpected argument %q", args[0])
			}
			path := "/health"
			if ready {
				path = "/ready"
			}
			if _, err := n.get(ctx, env, path); err != nil {
				return env.Failf("%v", err)
			}
			fmt.Fprintln(env.Stdout, "ok")
			return daemon.ExitOK
		},
	}
}

func explainCommand() daemon.Command {
	return daemon.Command{
		Name: "explain", Usage: "[CODE]", Summary: "say what an error code means, or list all codes",
		Run: func(_ context.Context, env daemon.Env, args []string) int {
			switch len(args) {
			case 0:
				for _, f := range fault.All() {
					fmt.Fprintf(env.Stdout, "%s  %d  %s\n", f.Code, f.Status, f.Title)
				}
				return daemon.ExitOK
			case 1:
			default:
				return env.Usagef("explain: want one code, have %d", len(args))
			}
			f, known := findFault(args[0])
			if !known {
				return env.Failf("explain: %q is no code of ours; without a code, all are listed", args[0])
			}
			fmt.Fprintf(env.Stdout, "%s: %s\n\nHTTP status %d %s; error text %q\n\n%s\n\n%s\n",
				f.Code, f.Title, f.Status, http.StatusText(f.Status), f.Classic, f.Meaning, f.Remedy)
			return daemon.ExitOK
		},
	}
}

// findFault takes a code as it is written in an answer, in any case and also without what all codes begin with.
func findFault(code string) (fault.Fault, bool) {
	code = strings.ToUpper(code)
	code = strings.TrimPrefix(code, "PIKO-")
	code = strings.TrimPrefix(code, "E")
	return fault.ByCode("PIKO-E" + code)
}

// isNotFound reports whether the node knows nothing of what was asked for.
func isNotFound(err error) bool {
	s, ok := errors.AsType[*statusError](err)
	return ok && s.code == http.StatusNotFound
}
