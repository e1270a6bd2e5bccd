package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/pikotest/consultest"
)

// leaderDies kills the leader of three servers of Consul.
func leaderDies(t *testing.T) {
	r := startRig(t, rigOptions{Servers: 3})
	r.agent("here", 0)
	r.agent("there", 1)
	r.whole(settle, "here", "there")
	sessions := r.sessionIDs()
	troubles := r.troubles()
	w := r.watchOver([]string{"here", "there"}, 0, 1, 2)
	pause(500 * time.Millisecond)
	var dead *consultest.Consul
	for _, s := range r.servers {
		if s.Leads() {
			dead = s
		}
	}
	if dead == nil {
		t.Fatal("Consul has no leader")
	}
	for _, s := range r.servers {
		if s != dead {
			r.consul = s
		}
	}
	dead.Kill()
	killed := time.Now()
	r.agent("new", 2)
	r.reaches("new", bound(3*time.Second))
	t.Logf("a new endpoint is reached %s after the leader's death", time.Since(killed).Round(time.Millisecond))
	await(t, "Consul has it", settle, func() error {
		// The values come in base64, quoted.
		body, err := r.consul.Ask(http.MethodGet, "/v1/kv/pikod/piko/v1/n/n3/?recurse", "", time.Second)
		if err != nil {
			return err
		}
		var pairs []struct{ Value []byte }
		if err := json.Unmarshal(body, &pairs); err != nil {
			return err
		}
		all := ""
		for _, p := range pairs {
			all += string(p.Value)
		}
		return contains(all, `"new"`)
	})
	elected := time.Since(killed)
	pause(2 * time.Second)
	w.clean(killed, 0)
	for i, n := range r.troubles() {
		n -= troubles[i]
		t.Logf("Consul has it after %s; n%d met %.0f errors", elected.Round(time.Millisecond), i+1, n)
		if n > 60 {
			t.Errorf("n%d asked in vain %.0f times: want it to space its attempts", i+1, n)
		}
	}
	if now := r.sessionIDs(); fmt.Sprint(now) != fmt.Sprint(sessions) {
		t.Errorf("the sessions are %v: want those of before, %v", now, sessions)
	}
	dead.Restart()
	r.whole(settle, "here", "there", "new")
}

// troubles is how often each node has asked Consul in vain.
func (r *rig) troubles() (all []float64) {
	for i := range r.nodes {
		all = append(all, r.metric(i, "piko_consul_watch_errors_total")+r.metric(i, "piko_consul_renew_failures_total")+
			r.metric(i, "piko_consul_transactions_total", `result="error"`))
	}
	return all
}

// agentsOfConsulGo has nodes speak with agents of Consul on their own hosts, which then leave, and die for good.
func agentsOfConsulGo(t *testing.T) {
	var agents []*consultest.Consul
	r := startRig(t, rigOptions{Node: func(r *rig, i int) string {
		if i == 2 {
			return r.membership("n3")
		}
		agents = append(agents, consultest.Start(t, consultest.Options{Place: r.homes[i].place(), Settings: map[string]any{
			"server": false, "bootstrap_expect": nil, "retry_join": []string{r.consul.Serf()}, "leave_on_terminate": true,
		}}))
		first := fmt.Sprintf("address = [%q, ", agents[i].HTTP)
		if i == 0 {
			return fmt.Sprintf("[cluster]\nnode_id = \"n1\"\nsecret = %q\n[consul]\n%s]\n", clusterSecret, first)
		}
		return fmt.Sprintf("[cluster]\nnode_id = \"n2\"\nsecret = %q\n[consul]\n%s%q]\n", clusterSecret, first, r.consul.HTTP)
	}})
	r.agent("here", 0)
	r.agent("there", 1)
	r.whole(settle, "here", "there")
	r.row("restarted", func(t *testing.T) {
		sessions := r.sessionIDs()
		w := r.watchOver([]string{"here", "there"}, 0, 1, 2)
		began := time.Now()
		agents[0].Stop()
		pause(3 * time.Second)
		agents[0].Restart()
		pause(5 * time.Second)
		w.clean(began, 0)
		if now := r.sessionIDs(); fmt.Sprint(now) != fmt.Sprint(sessions) {
			t.Errorf("the sessions are %v: want those of before, %v", now, sessions)
		}
	})
	r.row("gone for good", func(t *testing.T) {
		sessions := r.sessionIDs()
		w := r.watchOver([]string{"here", "there"}, 0, 1, 2)
		began := time.Now()
		agents[0].Kill()
		agents[1].Kill()
		await(t, "Consul has given n1 up, which has no other address", expiry+settle, func() error { return r.sees(2, "n1", "orphan") })
		pause(3 * time.Second)
		if now := r.sessionIDs(); now["n2"] != sessions["n2"] || now["n1"] != "" {
			t.Errorf("the sessions are %v: want n2 to have kept %s by its other address", now, sessions["n2"])
		}
		if err := r.sees(2, "n2", "up"); err != nil {
			t.Error(err)
		}
		agents[0].Restart()
		r.whole(2*settle, "here", "there")
		w.clean(began, 0)
	})
}

// tokenIsLost takes the nodes' token away and gives them another, by the file that they read.
func tokenIsLost(t *testing.T) {
	file := writeFile(t, "token", "")
	var accessor string
	grant := func(r *rig) {
		var token struct{ AccessorID, SecretID string }
		if err := json.Unmarshal(r.ask(http.MethodPut, "/v1/acl/token", `{"Policies": [{"Name": "pikod"}]}`), &token); err != nil {
			t.Fatal(err)
		}
		accessor = token.AccessorID
		if err := os.WriteFile(file, []byte(token.SecretID+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rules := `key_prefix "pikod/piko/" { policy = "write" } session_prefix "pikod-" { policy = "write" }
		node_prefix "pikod-" { policy = "write" } service "pikod" { policy = "write" }`
	r := startRig(t, rigOptions{ACL: true, Node: func(r *rig, i int) string {
		if i == 0 {
			policy, err := json.Marshal(map[string]string{"Name": "pikod", "Rules": rules})
			if err != nil {
				t.Fatal(err)
			}
			r.ask(http.MethodPut, "/v1/acl/policy", string(policy))
			grant(r)
		}
		return r.membership(fmt.Sprint("n", i+1)) + fmt.Sprintf("token_file = %q\n", file)
	}})
	r.agent("here", 0)
	r.agent("there", 1)
	r.whole(settle, "here", "there")
	w := r.watchOver([]string{"here", "there"}, 0, 1, 2)
	pause(500 * time.Millisecond)
	began := time.Now()
	r.ask(http.MethodDelete, "/v1/acl/token/"+accessor, "")
	r.agent("new", 2)
	r.reaches("new", bound(3*time.Second))
	await(t, "Consul has given all nodes up", expiry+settle, func() error {
		if n := len(r.sessionIDs()); n > 0 {
			return fmt.Errorf("there are %d sessions", n)
		}
		return nil
	})
	t.Logf("without a token Consul gives the nodes up after %s", time.Since(began).Round(time.Millisecond))
	pause(5 * time.Second)
	grant(r)
	given := time.Now()
	await(t, "all have sessions again", settle, func() error {
		if n := len(r.sessionIDs()); n != 3 {
			return fmt.Errorf("there are %d sessions", n)
		}
		return contains(r.consul.CLI("kv", "get", "-recurse", "pikod/"), `"here"`, `"there"`, `"new"`)
	})
	t.Logf("with a new token Consul has everything after %s", time.Since(given).Round(time.Millisecond))
	r.whole(settle, "here", "there", "new")
	w.clean(began, 0)
}
