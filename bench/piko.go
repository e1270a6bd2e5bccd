package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// Endpoints of the agents here, and the name under which clients ask for the first.
const (
	webEndpoint = "web"
	tcpEndpoint = "tcp"
	webHost     = "web.piko.test"
)

type pikoOptions struct{ log, tls bool }

// node is a pikod and its addresses.
type node struct {
	*group
	proxy, upstream, admin, cluster string
}

// piko is a node, an agent and a forwarder with the settings that are shipped.
func (l *lab) piko(o pikoOptions) (*target, error) {
	n, err := l.node(o, "")
	if err != nil {
		return nil, err
	}
	return l.pikoBehind(n, n, o)
}

// pikoBehind is an agent at one node and a forwarder at another, which may be the same.
func (l *lab) pikoBehind(far, near *node, o pikoOptions) (*target, error) {
	t := &target{host: webHost, http: near.proxy, h2: near.proxy, groups: []*group{near.group}}
	t.admins = map[string]string{"pikod": near.admin}
	if far != near {
		t.groups = append(t.groups, far.group)
	}
	var admin string
	if err := freePorts(&t.tcp, &admin); err != nil {
		return nil, err
	}
	file, err := l.file("agent.toml", fmt.Sprintf("[connect]\nurl = \"http://%s\"\n\n[admin]\nlisten = %q\npprof = %t\n\n"+
		"[[listeners]]\nendpoint = %q\naddr = \"http://%s\"\n\n[[listeners]]\nendpoint = %q\naddr = %q\nprotocol = \"tcp\"\n",
		far.upstream, admin, l.pprof, webEndpoint, l.webAddr, tcpEndpoint, l.tcpAddr))
	if err != nil {
		return nil, err
	}
	agent, err := l.start("agent", filepath.Join(l.bin, "piko-agent"), "--config", file)
	if err != nil {
		return nil, err
	}
	t.groups, t.admins["agent"] = append(t.groups, agent), admin
	if o.tls {
		t.https, t.http, t.h2, t.tcp = t.http, "", "", ""
		return t, l.awaitEndpoints(near, webEndpoint)
	}
	if err := l.awaitAnswer(t.http, t.host); err != nil {
		return nil, err
	}
	forward, err := l.start("forward", filepath.Join(l.bin, "piko-forward"), t.tcp, tcpEndpoint, "--url", "http://"+near.proxy)
	if err != nil {
		return nil, err
	}
	t.groups = append(t.groups, forward)
	return t, l.awaitEcho(t.tcp)
}

// node starts a pikod. The text is put before its own settings.
func (l *lab) node(o pikoOptions, text string) (*node, error) {
	n := &node{}
	if err := freePorts(&n.proxy, &n.upstream, &n.admin, &n.cluster); err != nil {
		return nil, err
	}
	certificate := ""
	if o.tls {
		certificate = fmt.Sprintf("cert = %q\nkey = %q\n", l.cert.cert, l.cert.key)
	}
	text = strings.ReplaceAll(text, "{cluster}", n.cluster)
	text += fmt.Sprintf("[proxy]\nlisten = %q\naccess_log = %t\n[proxy.tls]\n%s[upstream]\nlisten = %q\n[upstream.tls]\n%s"+
		"[admin]\nlisten = %q\npprof = %t\n", n.proxy, o.log, certificate, n.upstream, "", n.admin, l.pprof)
	file, err := l.file("pikod.toml", text)
	if err != nil {
		return nil, err
	}
	if n.group, err = l.start("pikod", filepath.Join(l.bin, "pikod"), "--config", file); err != nil {
		return nil, err
	}
	return n, l.await("pikod to be ready", func() error {
		_, err := fetch("http://"+n.admin+"/ready", "")
		return err
	})
}

func (l *lab) awaitEndpoints(n *node, name string) error {
	return l.await("endpoint "+name, func() error {
		page, err := fetch("http://"+n.admin+"/status/upstream/endpoints", "")
		if err == nil && !strings.Contains(page, `"`+name+`"`) {
			err = errors.New("it is not there yet")
		}
		return err
	})
}

// twoNodes is a cluster of two: clients come to one, the agent is at the other.
func (l *lab) twoNodes() (*target, error) {
	var consul string
	ports := make([]string, 6)
	addrs := []*string{&consul}
	for i := range ports {
		addrs = append(addrs, &ports[i])
	}
	if err := freePorts(addrs...); err != nil {
		return nil, err
	}
	port := func(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }
	args := []string{
		filepath.Join(l.bin, "consul"), "agent", "-server", "-bootstrap-expect=1", "-bind=127.0.0.1", "-client=127.0.0.1",
		"-data-dir=" + filepath.Join(l.dir, "consul"), "-http-port=" + port(consul), "-serf-lan-port=" + port(ports[0]),
		"-serf-wan-port=-1", "-server-port=" + port(ports[1]), "-dns-port=-1", "-grpc-port=-1", "-grpc-tls-port=-1",
	}
	if _, err := l.start("consul", args...); err != nil {
		return nil, err
	}
	err := l.await("Consul to have a leader", func() error {
		leader, err := fetch("http://"+consul+"/v1/status/leader", "")
		if err == nil && !strings.Contains(leader, ":") {
			err = errors.New("none yet")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	settings := func(id string) string {
		return fmt.Sprintf("[consul]\naddress = \"http://%s\"\n[cluster]\nnode_id = %q\nlisten = \"{cluster}\"\n"+
			"advertise = \"{cluster}\"\nsecret = \"a secret of this run of the benchmark\"\n", consul, id)
	}
	far, err := l.node(pikoOptions{log: true}, settings("far"))
	if err != nil {
		return nil, err
	}
	near, err := l.node(pikoOptions{log: true}, settings("near"))
	if err != nil {
		return nil, err
	}
	far.label = "far pikod"
	return l.pikoBehind(far, near, pikoOptions{log: true})
}
