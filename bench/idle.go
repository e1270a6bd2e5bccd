package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/pikoproxy/piko"
)

// idle is what many tunnels cost a node that has nothing else to do.
type idle struct {
	tunnels  int
	tls      bool
	joined   time.Duration // until all were there
	idleKiB  float64       // resident for each
	burstKiB float64       // for each after 1 MiB has come through each and gone quiet again; without TLS only
	burstMax float64       // the same just after the last of them
}

// first is how many tunnels a node has before those that count: what it needs once, such as the pages of its program, is not
// theirs.
const first = 100

// crowd connects many tunnels, each an endpoint of its own, name and a number, that answers 1 MiB. It says when all are there,
// and stays.
func crowd(ctx context.Context, url, ca, name string, n int) error {
	var trust *tls.Config
	if ca != "" {
		pem, err := os.ReadFile(ca) //nolint:gosec // G703: this program has named the file itself
		if err != nil {
			return err
		}
		trust = &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
		trust.RootCAs.AppendCertsFromPEM(pem)
	}
	body := make([]byte, bigBody)
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) })
	var all sync.WaitGroup
	errs := make([]error, n)
	turns := make(chan struct{}, 64)
	for i := range n {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			client := &piko.Client{URL: url, Connections: 1, TLSConfig: trust}
			ln, err := client.Listen(ctx, fmt.Sprint(name, i))
			if errs[i] = err; err != nil {
				return
			}
			server := http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
			go func() { _ = server.Serve(ln) }() // ends with the process
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Println("ready")
	<-ctx.Done()
	return nil
}

// measureIdle counts the memory of a node of its own, which ends after.
func (l *lab) measureIdle(p plan, secure bool) (idle, error) {
	from := len(l.list)
	i := idle{tunnels: p.tunnels, tls: secure}
	err := l.fillIdle(p, &i)
	return i, errors.Join(err, l.stop(from))
}

func (l *lab) fillIdle(p plan, i *idle) error {
	n := &node{}
	if err := freePorts(&n.proxy, &n.upstream, &n.admin); err != nil {
		return err
	}
	url, ca, certificate := "http://"+n.upstream, "", ""
	if i.tls {
		url, ca = "https://"+n.upstream, l.cert.cert
		certificate = fmt.Sprintf("[upstream.tls]\ncert = %q\nkey = %q\n", l.cert.cert, l.cert.key)
	}
	file, err := l.file("pikod.toml", fmt.Sprintf("[proxy]\nlisten = %q\n[upstream]\nlisten = %q\n%s[admin]\nlisten = %q\n",
		n.proxy, n.upstream, certificate, n.admin))
	if err != nil {
		return err
	}
	if n.group, err = l.start("pikod", filepath.Join(l.bin, "pikod"), "--config", file); err != nil {
		return err
	}
	if err := l.awaitPort(n.upstream); err != nil {
		return err
	}
	join := func(name string, count int) error {
		members, err := l.startRole("@crowd", url, ca, name, fmt.Sprint(count))
		if err != nil {
			return err
		}
		return l.await("the crowd", func() error { return said(members.log, "ready") })
	}
	if err := join("w", first); err != nil {
		return err
	}
	if err := burst(n.proxy, "w", first); err != nil {
		return err
	}
	time.Sleep(p.settle)
	_, before := n.usage()
	began := time.Now()
	if err := join("t", i.tunnels); err != nil {
		return err
	}
	i.joined = time.Since(began)
	each := func() float64 {
		_, rss := n.usage()
		return float64(rss-before) / float64(i.tunnels) / 1024
	}
	time.Sleep(p.settle)
	i.idleKiB = each()
	if i.tls {
		return nil
	}
	if err := burst(n.proxy, "t", i.tunnels); err != nil {
		return err
	}
	i.burstMax = each()
	time.Sleep(p.settle)
	i.burstKiB = each()
	return nil
}

func said(file, word string) error {
	b, err := os.ReadFile(file)
	if err == nil && !strings.Contains(string(b), word) {
		err = errors.New("not yet")
	}
	return err
}

// burst gets 1 MiB through each tunnel, a few at a time.
func burst(proxy, name string, tunnels int) error {
	errs := make([]error, 8)
	var all sync.WaitGroup
	for worker := range errs {
		all.Go(func() {
			client := http.Client{Timeout: time.Minute, Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for i := worker; i < tunnels && errs[worker] == nil; i += len(errs) {
				errs[worker] = drainOne(&client, proxy, fmt.Sprint(name, i))
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func drainOne(client *http.Client, proxy, endpoint string) error {
	req, err := http.NewRequest(http.MethodGet, "http://"+proxy+"/", http.NoBody)
	if err != nil {
		return err
	}
	req.Header.Set("X-Piko-Endpoint", endpoint)
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, bufio.NewReader(io.LimitReader(res.Body, 2*bigBody)))
	if err == nil && n != bigBody {
		err = fmt.Errorf("%s: %s, %d bytes", endpoint, res.Status, n)
	}
	return err
}

// registration is what it takes one agent to offer many endpoints.
type registration struct {
	endpoints         int
	took              time.Duration
	nodeMiB, agentMiB float64
	nodeCPU, agentCPU time.Duration
}

func (l *lab) measureRegistration(count int) (r registration, err error) {
	from := len(l.list)
	defer func() { err = errors.Join(err, l.stop(from)) }()
	r.endpoints = count
	n, err := l.node(pikoOptions{log: true}, "")
	if err != nil {
		return r, err
	}
	var text strings.Builder
	fmt.Fprintf(&text, "[connect]\nurl = \"http://%s\"\n", n.upstream)
	for i := range count {
		fmt.Fprintf(&text, "[[listeners]]\nendpoint = \"e%d\"\naddr = \"http://%s\"\n", i, l.webAddr)
	}
	file, err := l.file("agent.toml", text.String())
	if err != nil {
		return r, err
	}
	cpu, rss := n.usage()
	began := time.Now()
	agent, err := l.start("agent", filepath.Join(l.bin, "piko-agent"), "--config", file)
	if err != nil {
		return r, err
	}
	err = l.await(fmt.Sprint(count, " endpoints"), func() error {
		page, err := fetch("http://"+n.admin+"/status/upstream/endpoints", "")
		if err != nil {
			return err
		}
		var all map[string]int
		if err := json.Unmarshal([]byte(page), &all); err != nil {
			return err
		}
		if len(all) < count {
			return fmt.Errorf("there are %d", len(all))
		}
		return nil
	})
	r.took = time.Since(began)
	after, grown := n.usage()
	agentCPU, agentRSS := agent.usage()
	r.nodeCPU, r.agentCPU = after-cpu, agentCPU
	r.nodeMiB, r.agentMiB = float64(grown-rss)/(1<<20), float64(agentRSS)/(1<<20)
	return r, err
}
