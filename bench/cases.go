package main

import (
	"regexp"
	"time"
)

type opener = func(limit time.Time) (client, error)

// trial is one kind of load, put on several targets in turn.
type trial struct {
	name    string
	targets []string // the first is the reference of the ratios
	others  string   // what another tunnel must offer to take part: "http", "tcp", or empty for none
	clients int
	bulk    bool // counted in bytes, not in exchanges
	full    bool // not in the short run
	open    func(t *target) opener

	// variants are names among the targets that stand for another load on one of them, to compare the two in each round.
	variants map[string]variant
}

type variant struct {
	target  string
	clients int
	open    func(t *target) opener
}

// Names of variants and trials that the goals look at.
const (
	pikoFew   = "piko, HTTP/1.1, 64 connections"
	pikoPlain = "piko, TCP echo"

	trialOne      = "HTTP/1.1, 1 connection"
	trialMany     = "HTTP/1.1, 64 connections"
	trialCrowd    = "HTTP/1.1, 256 connections"
	trialHTTP2    = "HTTP/2, 8 connections x 8 streams"
	trialGRPC     = "gRPC, 8 connections x 8 calls"
	trialSocket   = "WebSocket echo, 32 connections"
	trialTCP      = "TCP echo, 32 connections"
	trialDown     = "TCP bulk down, 2 connections"
	trialUp       = "TCP bulk up, 2 connections"
	trialHop      = "HTTP/1.1, 64 connections, second node"
	trialBeside   = "HTTP/1.1, 4 connections beside a download"
	trialSlowPeer = "HTTP/1.1, 4 connections beside a slow reader"
	trialCalm     = "HTTP/1.1, 4 connections"
)

func asks(change func(q *question)) func(t *target) opener {
	return func(t *target) opener { return openHTTP1(ask(t, change)) }
}

func ask(t *target, change func(q *question)) question {
	q := question{addr: t.http, host: t.host, path: "/"}
	if t.http == "" {
		q.addr, q.tls = t.https, true
	}
	if change != nil {
		change(&q)
	}
	return q
}

func overTLS(q *question) { q.tls = true }

// trials are all there are, in the order of the table.
func trials() []trial {
	web, tcp := []string{nginx, pikoName}, []string{relays, naive, pikoName}
	small := asks(nil)
	return []trial{
		{name: trialOne, targets: []string{nginx, direct, pikoName}, others: "http", clients: 1, open: small},
		{name: trialCalm, targets: web, others: "http", clients: 4, full: true, open: small},
		{name: "HTTP/1.1, 32 connections", targets: web, others: "http", clients: 32, full: true, open: small},
		{name: trialMany, targets: web, others: "http", clients: 64, open: small},
		{
			name: trialCrowd, targets: []string{nginx, pikoName, pikoFew}, others: "http", clients: 256, open: small,
			variants: map[string]variant{pikoFew: {pikoName, 64, small}},
		},
		{
			name: "HTTP/1.1, 64 connections, no access log", targets: []string{nginxMute, pikoName, pikoMute}, clients: 64, open: small,
		},
		{
			name: "HTTP/1.1, 1 client, a connection each time", targets: web, others: "http", clients: 1, full: true,
			open: asks(func(q *question) { q.fresh = true }),
		},
		{
			name: "HTTP/1.1, 32 clients, a connection each time", targets: web, others: "http", clients: 32,
			open: asks(func(q *question) { q.fresh = true }),
		},
		{
			name: "HTTP/1.1, 256 clients, a connection each time", targets: web, others: "http", clients: 256, full: true,
			open: asks(func(q *question) { q.fresh = true }),
		},
		{
			name: "HTTP/1.1, 16 connections, 64 KiB down", targets: web, others: "http", clients: 16,
			open: asks(func(q *question) { q.path = "/64k" }),
		},
		{
			name: "HTTP/1.1, 16 connections, 64 KiB up", targets: web, others: "http", clients: 16,
			open: asks(func(q *question) { q.upload = midBody }),
		},
		{name: "HTTPS, 64 connections", targets: []string{nginx, pikoTLS}, clients: 64, open: func(t *target) opener {
			q := ask(t, overTLS)
			q.addr = t.https
			return openHTTP1(q)
		}},
		{
			name: trialHTTP2, targets: []string{nginx, pikoName, pikoFew}, clients: 8,
			open:     func(t *target) opener { return openHTTP2(t.h2, t.host, 8, false) },
			variants: map[string]variant{pikoFew: {pikoName, 64, small}},
		},
		{
			name: trialGRPC, targets: []string{pikoFew, pikoName}, clients: 8,
			open:     func(t *target) opener { return openHTTP2(t.h2, t.host, 8, true) },
			variants: map[string]variant{pikoFew: {pikoName, 64, small}},
		},
		{
			name: trialSocket, targets: []string{nginx, pikoName, pikoPlain}, others: "http", clients: 32,
			open:     func(t *target) opener { return openWebSocket(t.http, t.host) },
			variants: map[string]variant{pikoPlain: {pikoName, 32, echoes}},
		},
		{name: trialBeside, targets: web, others: "http", clients: 4, open: func(t *target) opener { return beside(ask(t, nil), false) }},
		{name: trialSlowPeer, targets: web, others: "http", clients: 4, open: func(t *target) opener { return beside(ask(t, nil), true) }},
		{name: "TCP echo, 1 connection", targets: tcp, others: "tcp", clients: 1, full: true, open: echoes},
		{name: trialTCP, targets: tcp, others: "tcp", clients: 32, open: echoes},
		{name: trialDown, targets: tcp, others: "tcp", clients: 2, bulk: true, open: func(t *target) opener { return openTransfer(t.tcp, false) }},
		{name: trialUp, targets: tcp, others: "tcp", clients: 2, bulk: true, open: func(t *target) opener { return openTransfer(t.tcp, true) }},
		{name: trialHop, targets: []string{nginx, pikoName, pikoHop}, clients: 64, open: small},
	}
}

func echoes(t *target) opener { return openEcho(t.tcp) }

// chosen are the trials of this run.
func chosen(full bool, run *regexp.Regexp) []trial {
	var list []trial
	for _, t := range trials() {
		if run.MatchString(t.name) && (full || !t.full) {
			list = append(list, t)
		}
	}
	return list
}

// plan says how long to measure.
type plan struct {
	warm, length time.Duration
	rounds       int
	tunnels      int
	endpoints    int
	settle       time.Duration // after a burst, before memory is read
}

// samples are what one trial found, by target, one for each round.
type samples map[string][]sample

// try puts the load of a trial on each target in turn, round by round, so that what else the machine does meets all of them.
// Every other round goes backwards.
func (l *lab) try(t trial, p plan) (samples, error) {
	names := append([]string(nil), t.targets...)
	for name, command := range l.others {
		if t.others != "" && regexp.MustCompile(`\{`+t.others+`[:}]`).MatchString(command) {
			names = append(names, name)
		}
	}
	found := samples{}
	for round := range p.rounds {
		for i := range names {
			if round%2 == 1 {
				i = len(names) - 1 - i
			}
			v, ok := t.variants[names[i]]
			if !ok {
				v = variant{names[i], t.clients, t.open}
			}
			target, err := l.target(v.target)
			if err != nil {
				return nil, err
			}
			s, err := load(target, v.clients, p.warm, p.length, v.open(target))
			if err != nil {
				return nil, err
			}
			found[names[i]] = append(found[names[i]], s)
		}
	}
	return found, nil
}
