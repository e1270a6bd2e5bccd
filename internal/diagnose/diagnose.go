// Package diagnose finds out what keeps an agent from its cluster: it walks the way that the agent's connection takes, one
// step after the other, and says of each whether it works, and if not, what to do.
//
//	token ── proxy ── names ── connect ── tls ── clock ── handshake       services
//
// It uses the settings as the agent would, and the same code where a step has code: the last one is a real session. It
// offers no endpoint, so a cluster that serves notices nothing but a session that comes and goes. A step that rests on one
// that failed is skipped.
package diagnose

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/pikoproxy/piko/internal/config"
)

// The results of a step.
const (
	Pass = "pass"
	Fail = "fail"
	Skip = "skip" // it could not be tried, or there is nothing to try
)

// stepTimeout is how long one step may take.
const stepTimeout = 10 * time.Second

// Step is what came of one step.
type Step struct {
	Name   string `json:"step"`
	Result string `json:"result"`
	// Detail is what was found; Remedy, for a failure, what to do.
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

// Report is what came of all of them, in the order in which they were tried.
type Report struct {
	OK    bool   `json:"ok"`
	Steps []Step `json:"steps"`
}

// Options are what changes from one run to the next, beside the settings.
type Options struct {
	// Now is the local clock; nil: time.Now.
	Now func() time.Time
}

// Run tries everything. It returns when all steps have been tried or ctx has ended; each step ends within some seconds.
func Run(ctx context.Context, c config.Agent, o Options) Report {
	if o.Now == nil {
		o.Now = time.Now
	}
	d := &diagnosis{settings: c, now: o.Now}
	d.token()
	d.wayOut(ctx)
	d.services(ctx)
	r := Report{OK: true, Steps: d.steps}
	for _, s := range r.Steps {
		r.OK = r.OK && s.Result != Fail
	}
	return r
}

// diagnosis is one run.
type diagnosis struct {
	settings config.Agent
	now      func() time.Time
	steps    []Step
}

func (d *diagnosis) pass(name, format string, args ...any) {
	d.steps = append(d.steps, Step{Name: name, Result: Pass, Detail: fmt.Sprintf(format, args...)})
}

func (d *diagnosis) skip(name, format string, args ...any) {
	d.steps = append(d.steps, Step{Name: name, Result: Skip, Detail: fmt.Sprintf(format, args...)})
}

func (d *diagnosis) fail(name, remedy, format string, args ...any) {
	d.steps = append(d.steps, Step{Name: name, Result: Fail, Detail: fmt.Sprintf(format, args...), Remedy: remedy})
}

// wayOut tries the steps of the connection, each of which rests on the one before.
func (d *diagnosis) wayOut(ctx context.Context) {
	rest := []string{"proxy", "names", "connect", "tls", "clock", "handshake"}
	target, err := url.Parse(d.settings.Connect.URL)
	if err != nil || target.Host == "" {
		d.fail(rest[0], "set connect.url to http://HOST:PORT or https://HOST", "connect.url is not a URL with a host")
	} else {
		w := &way{diagnosis: d, target: target}
		for _, step := range []func(context.Context) bool{w.proxy, w.names, w.connect, w.tls, w.clock, w.handshake} {
			within, cancel := context.WithTimeout(ctx, stepTimeout)
			good := step(within)
			cancel()
			rest = rest[1:]
			if !good {
				break
			}
		}
	}
	for _, name := range rest {
		if len(d.steps) > 0 && d.steps[len(d.steps)-1].Name == name {
			continue
		}
		d.skip(name, "not tried, since a step before it failed")
	}
}

// Text writes the report for people, one step a line, and under each failure what to do.
func (r Report) Text(w io.Writer) error {
	var b strings.Builder
	for _, s := range r.Steps {
		fmt.Fprintf(&b, "%-4s  %-10s %s\n", strings.ToUpper(s.Result), s.Name, printable(s.Detail))
		if s.Remedy != "" {
			fmt.Fprintf(&b, "                 try: %s\n", printable(s.Remedy))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// JSON writes the report as one JSON object.
func (r Report) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// printable drops what a server could use to write on the operator's terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}
