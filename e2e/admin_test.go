package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func TestAdminTellsWhatIsThere(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{More: "[cluster]\nnode_id = \"node-of-the-test\""})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "one", Addr: serve(t, say("ok"))},
		offer{Endpoint: "two", Addr: serve(t, say("ok"))})
	if a := get(t, n.client(t), at("one", "/")); a.body != "ok" {
		t.Fatalf("status %d %s", a.StatusCode, a.body)
	}
	for path, want := range map[string][]string{
		"/health":                                nil,
		"/ready":                                 nil,
		"/metrics":                               {"piko_", "# TYPE"},
		"/status/upstream/endpoints":             {`"one":1`, `"two":1`},
		"/status/cluster/nodes":                  {`"id":"node-of-the-test"`, `"endpoints":2`, `"upstreams":`},
		"/status/cluster/nodes/local":            {`"id":"node-of-the-test"`, `"one":1`},
		"/status/cluster/nodes/node-of-the-test": {`"id":"node-of-the-test"`, `"one":1`},
		"/status/sessions":                       {`"remote":"127.0.0.1:`, `"endpoints":2`},
		"/status/routes/one":                     {"one"},
	} {
		status, body, err := fetch("http://" + n.admin + path)
		dense := strings.NewReplacer(" ", "", "\n", "").Replace(string(body))
		if path == "/metrics" {
			dense = string(body)
		}
		if err != nil || status != http.StatusOK || contains(dense, want...) != nil {
			t.Errorf("%s: status %d, %v, %v: %.300s", path, status, err, contains(dense, want...), dense)
		}
		if strings.HasPrefix(path, "/status") && !json.Valid(body) {
			t.Errorf("%s: not JSON: %.300s", path, body)
		}
	}
	for path, want := range map[string]int{
		"/status/cluster/nodes/absent": 404, "/debug/pprof/": 404, "/absent": 404,
	} {
		if status, body, err := fetch("http://" + n.admin + path); err != nil || status != want {
			t.Errorf("%s: status %d, %v: %.300s: want %d", path, status, err, body, want)
		}
	}
}

func TestStatusCommandsReadARunningNode(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{More: "[cluster]\nnode_id = \"node-of-the-test\""})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "one", Addr: serve(t, say("ok"))})
	for what, want := range map[string]string{
		"nodes": "node-of-the-test", "endpoints": "one", "sessions": "127.0.0.1", "routes one": "one",
	} {
		for _, format := range []string{"", "--json"} {
			args := append([]string{"status"}, strings.Fields(what)...)
			args = append(args, "--admin", "http://"+n.admin)
			if format != "" {
				args = append(args, format)
			}
			out, code := run(t, nil, "pikod", args...)
			if code != 0 || !strings.Contains(out, want) || format != "" && !json.Valid([]byte(out)) {
				t.Errorf("pikod %s exits %d: want %q in:\n%s", strings.Join(args, " "), code, want, out)
			}
		}
	}
	if out, code := run(t, nil, "pikod", "status", "nodes", "--admin", "http://"+freeAddress(t)); code != 1 {
		t.Errorf("status of a node that is not there exits %d: want 1:\n%s", code, out)
	}
	if out, code := run(t, nil, "pikod", "healthcheck", "--admin", "http://"+n.admin); code != 0 {
		t.Errorf("healthcheck of a living node exits %d: want 0:\n%s", code, out)
	}
	n.kill(t)
	if out, code := run(t, nil, "pikod", "healthcheck", "--admin", "http://"+n.admin); code == 0 {
		t.Errorf("healthcheck of a dead node exits %d:\n%s", code, out)
	}
}

// TestMetricsStayFewWhateverIsAskedFor guards against labels that clients choose.
func TestMetricsStayFewWhateverIsAskedFor(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Proxy: `endpoint_wait = "0s"`})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serve(t, say("ok"))})
	c := n.client(t)
	series := func() int {
		_, body, err := fetch("http://" + n.admin + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		for line := range strings.Lines(string(body)) {
			if strings.HasPrefix(line, "piko_") {
				count++
			}
		}
		return count
	}
	ask := func(from, to int) {
		for i := from; i < to; i++ {
			get(t, c, at(fmt.Sprint("guess", i), fmt.Sprint("/", i)))
			get(t, c, at("e", fmt.Sprint("/", i)))
			do(t, c, request(t, fmt.Sprint("M", i), at("e", "/"), nil))
		}
	}
	ask(0, 10)
	before := series()
	ask(10, 300)
	if after := series(); after > before+10 || before == 0 {
		t.Errorf("%d series, %d after 870 more requests: want names, paths and methods in no label", before, after)
	}
}
