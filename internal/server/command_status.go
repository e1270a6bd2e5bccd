package server

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/pikoproxy/piko/internal/daemon"
	"github.com/pikoproxy/piko/internal/router"
)

// view is one thing that `pikod status` can show.
type view struct {
	path  string
	print func(w io.Writer, body []byte) error
}

func statusCommand() daemon.Command {
	var n node
	var raw bool
	return daemon.Command{
		Name: "status", Usage: "nodes|endpoints|sessions|routes [ENDPOINT] [--admin URL] [--token-file FILE] [--json]",
		Summary: "show what a node knows",
		Flags: func(fs *flag.FlagSet) {
			n.flags(fs)
			fs.BoolVar(&raw, "json", false, "print the node's answer as it is")
		},
		Run: func(ctx context.Context, env daemon.Env, args []string) int {
			v, problem := viewOf(args)
			if problem != "" {
				return env.Usagef("status: %s", problem)
			}
			body, err := n.get(ctx, env, v.path)
			if isNotFound(err) {
				return env.Failf("status %s: the node knows of no such thing", strings.Join(args, " "))
			}
			if err != nil {
				return env.Failf("%v", err)
			}
			if raw {
				_, err = env.Stdout.Write(body)
			} else {
				err = v.print(env.Stdout, body)
			}
			if err != nil {
				return env.Failf("%v", err)
			}
			return daemon.ExitOK
		},
	}
}

// viewOf reads the arguments, or says what is wrong with them.
func viewOf(args []string) (v view, problem string) {
	if len(args) == 0 {
		return view{}, "want nodes, endpoints, sessions or routes"
	}
	what, rest := args[0], args[1:]
	switch what {
	case "nodes":
		v = view{"/status/cluster/nodes", printNodes}
	case "endpoints":
		v = view{"/status/upstream/endpoints", printEndpoints}
	case "sessions":
		v = view{"/status/sessions", printSessions}
	case "routes":
		if len(rest) == 0 {
			return view{"/status/upstream/endpoints", printEndpoints}, ""
		}
		tenant, name, found := strings.Cut(rest[0], "/")
		path := "/status/routes/" + url.PathEscape(tenant)
		if found {
			path += "/" + url.PathEscape(name)
		}
		v, rest = view{path, printRoute}, rest[1:]
	default:
		return view{}, fmt.Sprintf("%q: want nodes, endpoints, sessions or routes", what)
	}
	if len(rest) > 0 {
		return view{}, fmt.Sprintf("unexpected argument %q", rest[0])
	}
	return v, ""
}

func decode(body []byte, into any) error {
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("the answer is not that of a pikod: %w", err)
	}
	return nil
}

// table prints rows in columns. Cells come from agents in part, so what could steer a terminal is taken out.
func table(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if row[i] = printable(cell); row[i] == "" {
				row[i] = "-"
			}
		}
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	return t.Flush()
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

func printNodes(w io.Writer, body []byte) error {
	var nodes []struct {
		nodeStatus
		Endpoints int `json:"endpoints"` // a number here, where the answer for one node has names
	}
	if err := decode(body, &nodes); err != nil {
		return err
	}
	rows := [][]string{{"ID", "STATUS", "PROXY", "ADMIN", "ENDPOINTS", "UPSTREAMS"}}
	for _, n := range nodes {
		rows = append(rows, []string{
			n.ID, n.Status, n.ProxyAddr, n.AdminAddr, fmt.Sprint(n.Endpoints), fmt.Sprint(n.Upstreams),
		})
	}
	return table(w, rows)
}

func printEndpoints(w io.Writer, body []byte) error {
	var endpoints map[string]int
	if err := decode(body, &endpoints); err != nil {
		return err
	}
	rows := [][]string{{"ENDPOINT", "UPSTREAMS"}}
	for _, name := range slices.Sorted(maps.Keys(endpoints)) {
		rows = append(rows, []string{name, fmt.Sprint(endpoints[name])})
	}
	return table(w, rows)
}

func printSessions(w io.Writer, body []byte) error {
	var sessions []sessionStatus
	if err := decode(body, &sessions); err != nil {
		return err
	}
	rows := [][]string{{"ID", "KIND", "AGENT", "REMOTE", "TENANT", "ENDPOINTS", "STREAMS", "RTT", "SINCE", "STATE"}}
	for _, s := range sessions {
		endpoints := fmt.Sprint(s.Endpoints)
		if s.Endpoint != "" {
			endpoints = s.Endpoint
		}
		state := "open"
		if s.Closing {
			state = "closing"
		}
		rows = append(rows, []string{
			s.ID, s.Kind, s.Agent, s.Remote, s.Tenant, endpoints, fmt.Sprint(s.Streams), s.RTT,
			s.Since.Format(time.RFC3339), state,
		})
	}
	return table(w, rows)
}

func printRoute(w io.Writer, body []byte) error {
	var x router.Explanation
	if err := decode(body, &x); err != nil {
		return err
	}
	fmt.Fprintf(w, "%s: %s (policy %s)\n", printable(x.Endpoint), printable(x.Verdict), printable(string(x.Policy)))
	if len(x.Upstreams) == 0 {
		return nil
	}
	rows := [][]string{
		{"SESSION", "WHERE", "PROTOCOL", "WEIGHT", "SHARE", "IN FLIGHT", "IDLE", "FAULTS", "STATE", "FOR"},
	}
	for _, u := range x.Upstreams {
		where := "here"
		if u.Remote {
			where = "peer"
		}
		rows = append(rows, []string{
			u.Session, where, u.Protocol, fmt.Sprint(u.Weight), fmt.Sprintf("%.0f%%", u.Share*100),
			fmt.Sprint(u.InFlight), fmt.Sprint(u.Idle), fmt.Sprint(u.Faults), u.State, u.For,
		})
	}
	return table(w, rows)
}
