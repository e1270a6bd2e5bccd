package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// target is one way from a client to the service, with all the processes on it.
type target struct {
	name   string
	host   string // what clients ask for
	groups []*group
	admins map[string]string // addresses that tell allocations, by label

	// Addresses by what they speak; empty where it is not offered.
	http, https, h2, tcp string
}

// cpu returns the CPU time used so far, by label. Processes of one label count as one.
func (t *target) cpu() map[string]time.Duration {
	all := map[string]time.Duration{"load": ownCPU()}
	for _, g := range t.groups {
		cpu, _ := g.usage()
		all[g.label] += cpu
	}
	return all
}

// allocs returns the number of allocations so far, by label.
func (t *target) allocs() map[string]float64 {
	all := map[string]float64{}
	for label, addr := range t.admins {
		if n, err := metric(addr, "go_memstats_mallocs_total"); err == nil {
			all[label] += n
		}
	}
	return all
}

func metric(admin, name string) (float64, error) {
	page, err := fetch("http://"+admin+"/metrics", "")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(page) {
		if value, found := strings.CutPrefix(line, name+" "); found {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("%s: no metric %s", admin, name)
}

// fetch gets a page of at most 64 MiB; anything but 200 is an error.
func fetch(url, host string) (string, error) {
	req, err := http.NewRequest(http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	req.Host = host
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(bufio.NewReader(io.LimitReader(res.Body, 64<<20)))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.200s", url, res.Status, body)
	}
	return string(body), err
}

// lab starts targets when a case first asks for them.
type lab struct {
	groups
	dir     string // for their files. Logs are apart from settings: a process that watches its settings would see each line
	bin     string
	pprof   bool
	others  map[string]string // command by name
	web     *group            // the services
	webAddr string
	tcp     *group
	tcpAddr string
	cert    certificate
	ready   map[string]*target
}

func newLab(dir, bin string, others map[string]string) (*lab, error) {
	l := &lab{groups: groups{logs: filepath.Join(dir, "logs")}, dir: filepath.Join(dir, "files"), bin: bin, others: others}
	l.ready = map[string]*target{}
	if err := errors.Join(os.Mkdir(l.logs, 0o700), os.Mkdir(l.dir, 0o700)); err != nil {
		return nil, err
	}
	if err := freePorts(&l.webAddr, &l.tcpAddr); err != nil {
		return nil, err
	}
	var err error
	if l.cert, err = newCertificate(l.dir); err != nil {
		return nil, err
	}
	if l.web, err = l.startRole("@service", l.webAddr, l.tcpAddr); err != nil {
		return nil, err
	}
	l.tcp = l.web
	return l, errors.Join(l.awaitPort(l.webAddr), l.awaitPort(l.tcpAddr))
}

// names of the targets that are always there.
const (
	direct    = "direct"
	nginx     = "nginx"
	nginxMute = "nginx, no log"
	pikoName  = "piko"
	pikoTLS   = "piko, TLS"
	pikoMute  = "piko, no log"
	pikoHop   = "piko, 2 nodes"
	relays    = "two relays"
	naive     = "naive tunnel"
)

// target returns a target, which is started if it does not run yet.
func (l *lab) target(name string) (*target, error) {
	if t := l.ready[name]; t != nil {
		return t, nil
	}
	var t *target
	var err error
	from := len(l.list)
	switch name {
	case direct:
		t = &target{http: l.webAddr, tcp: l.tcpAddr}
	case nginx, nginxMute:
		t, err = l.nginx(name == nginx)
	case pikoName:
		t, err = l.piko(pikoOptions{log: true})
	case pikoTLS:
		t, err = l.piko(pikoOptions{log: true, tls: true})
	case pikoMute:
		t, err = l.piko(pikoOptions{})
	case pikoHop:
		t, err = l.twoNodes()
	case relays:
		t, err = l.relays()
	case naive:
		t, err = l.naive()
	default:
		t, err = l.other(name, l.others[name])
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), l.stop(from))
	}
	t.name, t.groups = name, append(t.groups, l.web)
	l.ready[name] = t
	return t, nil
}

// file writes a file for a process.
func (l *lab) file(name, text string) (string, error) {
	path := filepath.Join(l.dir, fmt.Sprintf("%d-%s", len(l.list), name))
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// relays is two plain TCP proxies in a row.
func (l *lab) relays() (*target, error) {
	t := &target{}
	var inner string
	if err := freePorts(&t.tcp, &inner); err != nil {
		return nil, err
	}
	for _, way := range [][2]string{{inner, l.tcpAddr}, {t.tcp, inner}} {
		g, err := l.startRole("@relay", way[0], way[1])
		if err != nil {
			return nil, err
		}
		t.groups = append(t.groups, g)
	}
	return t, errors.Join(l.awaitPort(inner), l.awaitPort(t.tcp))
}

// naive is a tunnel without what ours does for speed.
func (l *lab) naive() (*target, error) {
	t := &target{}
	var server string
	if err := freePorts(&t.tcp, &server); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"@naive-server", server}, {"@naive-agent", server, l.tcpAddr}, {"@naive-forward", t.tcp, server},
	} {
		g, err := l.startRole(args[0], args[1:]...)
		if err != nil {
			return nil, err
		}
		t.groups = append(t.groups, g)
		if args[0] == "@naive-server" {
			if err := l.awaitPort(server); err != nil {
				return nil, err
			}
		}
	}
	return t, l.awaitEcho(t.tcp)
}

// awaitEcho waits until the whole way to the TCP service works.
func (l *lab) awaitEcho(addr string) error {
	return l.await("an echo from "+addr, func() error {
		c, err := openEcho(addr)(time.Now().Add(time.Second))
		if err != nil {
			return err
		}
		defer c.close()
		return c.step(newMeter())
	})
}

// awaitAnswer waits until the whole way to the HTTP service works.
func (l *lab) awaitAnswer(addr, host string) error {
	return l.await("an answer from "+addr, func() error {
		_, err := fetch("http://"+addr+"/", host)
		return err
	})
}

// other starts another tunnel by a shell command, in which words in braces stand for addresses (see README.md).
func (l *lab) other(name, command string) (*target, error) {
	t := &target{host: "web.bench.test"}
	words := map[string]*string{"{http}": &t.http, "{tcp}": &t.tcp}
	for i := range 6 {
		words[fmt.Sprintf("{port%d}", i+1)] = new(string)
	}
	if err := freePorts(slices.Collect(maps.Values(words))...); err != nil {
		return nil, err
	}
	words["{dir}"], words["{service}"], words["{service_tcp}"], words["{host}"] = &l.dir, &l.webAddr, &l.tcpAddr, &t.host
	uses := func(word string) bool { return strings.Contains(command, word) }
	usesHTTP, usesTCP := uses("{http}"), uses("{tcp}")
	for word, value := range words {
		command = strings.ReplaceAll(command, word, *value)
		// A port alone, for programs that want it apart from the host.
		_, port, _ := strings.Cut(*value, ":")
		command = strings.ReplaceAll(command, strings.TrimSuffix(word, "}")+":port}", port)
	}
	g, err := l.start(name, "sh", "-c", command)
	if err != nil {
		return nil, err
	}
	t.groups = []*group{g}
	if usesHTTP {
		err = l.awaitAnswer(t.http, t.host)
	} else {
		t.http = ""
	}
	if usesTCP {
		err = errors.Join(err, l.awaitEcho(t.tcp))
	} else {
		t.tcp = ""
	}
	return t, err
}
