package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// node is where one pikod of the cluster listens.
type node struct{ id, proxy, upstream, admin, peers string }

const members = 3

// runCluster shows three nodes that find each other through a real Consul, and reaches an endpoint through each of them.
func runCluster(bin, dir string) (err error) {
	web, err := serveHTTP()
	if err != nil {
		return err
	}
	defer web.Close()
	fmt.Printf("A service of this demo answers HTTP on %s.\n\n", web.Addr())

	var all processes
	defer func() { err = errors.Join(err, all.stop()) }()
	directory, err := startConsul(&all, bin)
	if err != nil {
		return err
	}
	nodes, err := startNodes(&all, bin, dir, directory)
	if err != nil {
		return err
	}
	// Each agent reaches one node; the endpoint is offered at two of the three.
	for _, n := range nodes[:2] {
		if err := all.start(bin, "piko-agent", "http", httpEndpoint, web.Addr().String(), "--url", "http://"+n.upstream); err != nil {
			return err
		}
		registered := func() bool { return get(n.admin, "/status/upstream/endpoints", `"`+httpEndpoint+`"`) == nil }
		if err := all.await("endpoint "+httpEndpoint+" at "+n.id, registered); err != nil {
			return err
		}
	}
	last := nodes[members-1]
	known := func() bool { return get(last.admin, "/status/routes/"+httpEndpoint, `"node":"`+nodes[1].id) == nil }
	if err := all.await("the route to "+nodes[1].id, known); err != nil {
		return err
	}
	if err := show(bin, "status", "nodes", "--admin", "http://"+last.admin); err != nil {
		return err
	}
	if err := show(bin, "status", "routes", httpEndpoint, "--admin", "http://"+last.admin); err != nil {
		return err
	}
	return askEach(nodes)
}

// askEach sends a request through every node, also those that no agent is connected to.
func askEach(nodes []node) error {
	var errs []error
	for _, n := range nodes {
		fmt.Printf("\n$ curl -H 'x-piko-endpoint: %s' http://%s/through-%s\n", httpEndpoint, n.proxy, n.id)
		answer, err := fetch(n.proxy, "/through-"+n.id, "x-piko-endpoint", httpEndpoint)
		fmt.Print(answer)
		if err == nil && !strings.Contains(answer, "This is the service. You asked for /through-"+n.id) {
			err = fmt.Errorf("the answer is not the service's: %q", answer)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("through %s: %w", n.id, err))
		}
	}
	return errors.Join(errs...)
}

// startConsul runs a server that keeps all in memory, and returns the address of its API.
func startConsul(all *processes, bin string) (string, error) {
	var api, rpc, serf string
	if err := freePorts(&api, &rpc, &serf); err != nil {
		return "", err
	}
	err := all.start(bin, "consul", "agent", "-dev", "-bind=127.0.0.1", "-client=127.0.0.1", "-log-level=error",
		"-http-port="+port(api), "-server-port="+port(rpc), "-serf-lan-port="+port(serf), "-serf-wan-port=-1",
		"-grpc-port=-1", "-grpc-tls-port=-1", "-dns-port=-1", "-hcl=leave_on_terminate=true")
	if err != nil {
		return "", err
	}
	return api, all.await("Consul to elect itself", func() bool { return get(api, "/v1/status/leader", ":") == nil })
}

func port(addr string) string {
	_, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "" // not reached: it is the address of a listener
	}
	return p
}

// startNodes starts the nodes at the same moment, and returns when each knows all of them.
func startNodes(all *processes, bin, dir, directory string) ([]node, error) {
	var nodes []node
	for i := range members {
		n := node{id: fmt.Sprintf("node-%d", i+1)}
		if err := freePorts(&n.proxy, &n.upstream, &n.admin, &n.peers); err != nil {
			return nil, err
		}
		file := filepath.Join(dir, n.id+".toml")
		settings := fmt.Sprintf("[proxy]\nlisten = %q\n\n[upstream]\nlisten = %q\n\n[admin]\nlisten = %q\n\n"+
			"[cluster]\nnode_id = %q\nlisten = %q\nsecret = %q\n\n[consul]\naddress = %q\n",
			n.proxy, n.upstream, n.admin, n.id, n.peers, "a secret of this demo only", directory)
		if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
			return nil, err
		}
		if err := all.start(bin, "pikod", "--config", file); err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		complete := func() bool {
			for _, other := range nodes {
				if get(n.admin, "/status/cluster/nodes/"+other.id, `"status":"up"`) != nil {
					return false
				}
			}
			return get(n.admin, "/ready", "") == nil
		}
		if err := all.await(n.id+" to know all nodes", complete); err != nil {
			return nil, err
		}
	}
	return nodes, nil
}

// show runs one command of pikod and prints what it prints.
func show(bin string, args ...string) error {
	fmt.Printf("\n$ pikod %s\n", strings.Join(args, " "))
	out, err := exec.Command(filepath.Join(bin, "pikod"), args...).CombinedOutput()
	fmt.Print(string(out))
	if err != nil {
		return fmt.Errorf("pikod %s: %w", strings.Join(args, " "), err)
	}
	return nil
}
