package main

import (
	"bytes"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestQuantilesAreAtMostOneStepTooLow(t *testing.T) {
	var h histogram
	for i := range 10_000 {
		h.add(time.Duration(i+1) * time.Microsecond)
	}
	for q, want := range map[float64]time.Duration{0.5: 5 * time.Millisecond, 0.99: 9900 * time.Microsecond, 1: 10 * time.Millisecond} {
		if have := h.quantile(q); have > want || have < want-want/steps-1 {
			t.Errorf("quantile %v: want %s or up to 1/%d less, have %s", q, want, steps, have)
		}
	}
	if have := new(histogram).quantile(0.5); have != 0 {
		t.Errorf("quantile of nothing: want 0, have %s", have)
	}
}

func TestEachDurationFallsIntoASlotThatBeginsBelowIt(t *testing.T) {
	last := -1
	for d := time.Duration(0); d < time.Hour; d += d/200 + 1 {
		i := slot(uint64(d))
		if floor(i) > d || floor(i+1) <= d || i < last {
			t.Fatalf("%d ns falls into slot %d, [%d, %d), after slot %d", d, i, floor(i), floor(i+1), last)
		}
		last = i
	}
	var h histogram
	h.add(1 << 62)
	h.add(-1)
	if h.total != 2 || h.quantile(0) != 0 {
		t.Errorf("what does not fit is not kept at the ends: %d counted, least %s", h.total, h.quantile(0))
	}
}

func TestStatOfAProcessWithAnOddName(t *testing.T) {
	line := "42 (a) S) ) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 9 9 20 0 8 0 12345 99999 25 18446744073709551615 0\n"
	pgrp, cpu, pages := parseStat(line)
	if pgrp != 7 || cpu != 2*time.Second || pages != 25 {
		t.Errorf("want group 7, 2s, 25 pages; have %d, %s, %d", pgrp, cpu, pages)
	}
	if pgrp, cpu, pages = parseStat("42 (a) S 1 7"); pgrp != 0 || cpu != 0 || pages != 0 {
		t.Errorf("a short line: want nothing, have %d, %s, %d", pgrp, cpu, pages)
	}
}

// script is a connection that answers what it is told to, piece by piece.
type script struct {
	net.Conn
	pieces []string
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.pieces) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.pieces[0])
	if s.pieces[0] = s.pieces[0][n:]; s.pieces[0] == "" {
		s.pieces = s.pieces[1:]
	}
	return n, nil
}

func TestAnswersAreReadToTheirEnd(t *testing.T) {
	for name, c := range map[string]struct {
		pieces []string
		size   int
		says   string // of the error; empty: none
	}{
		"in one piece":     {[]string{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nxxx"}, 3, ""},
		"in many":          {[]string{"HTTP/1.1 200", " OK\r\ncontent-LENGTH:3\r\n\r", "\n", "x", "xx"}, 3, ""},
		"chunks":           {[]string{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxxx\r\n0", "\r\n\r\n"}, 13, ""},
		"not 200":          {[]string{"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"}, 0, "502"},
		"cut":              {[]string{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nxx"}, 0, "EOF"},
		"more than it":     {[]string{"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxx"}, 0, "more"},
		"without a length": {[]string{"HTTP/1.1 200 OK\r\n\r\n"}, 0, "no length"},
		"endless head":     {[]string{"HTTP/1.1 200 OK\r\n" + strings.Repeat("a: b\r\n", 100)}, 0, "too long"},
	} {
		t.Run(name, func(t *testing.T) {
			client := &http1{conn: &script{pieces: c.pieces}, buf: make([]byte, 128)}
			size, err := client.answer()
			switch {
			case c.says == "" && (err != nil || size != c.size):
				t.Errorf("want %d bytes, have %d, %v", c.size, size, err)
			case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
				t.Errorf("want an error with %q, have %v", c.says, err)
			}
		})
	}
}

func TestTheServiceAnswersItsClients(t *testing.T) {
	web, tcp := listen(t), listen(t)
	go func() { _ = serveHTTP(web) }()
	go func() { _ = serveTCP(tcp) }()
	to := &target{name: "service", host: "bench", http: web.Addr().String(), tcp: tcp.Addr().String()}
	for name, open := range map[string]opener{
		"http":          openHTTP1(ask(to, nil)),
		"http, fresh":   openHTTP1(ask(to, func(q *question) { q.fresh = true })),
		"http, up":      openHTTP1(ask(to, func(q *question) { q.upload = midBody })),
		"http, down":    openHTTP1(ask(to, func(q *question) { q.path = "/64k" })),
		"beside a bulk": beside(ask(to, nil), false),
		"websocket":     openWebSocket(to.http, to.host),
		"tcp echo":      echoes(to),
		"tcp down":      openTransfer(to.tcp, false),
		"tcp up":        openTransfer(to.tcp, true),
	} {
		t.Run(name, func(t *testing.T) {
			s, err := load(to, 2, 0, 20*time.Millisecond, open)
			for long := 100 * time.Millisecond; long < time.Minute && err == nil && s.errs == 0 && s.exchanges == 0; long *= 4 {
				s, err = load(to, 2, 0, long, open) // a busy machine may not have come so far
			}
			if err != nil || s.errs > 0 || s.exchanges == 0 || s.bytes == 0 {
				t.Errorf("want exchanges and bytes, have %d and %d; %d clients stopped: %v %v", s.exchanges, s.bytes, s.errs, s.err, err)
			}
		})
	}
}

func listen(t *testing.T) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestStatusOfAnHTTP2Answer(t *testing.T) {
	for name, c := range map[string]struct {
		headers string
		want    bool
	}{
		"200":                  {"\x88\x5c", true},
		"200 after a new size": {"\x20\x88", true},
		"404":                  {"\x8d", false},
		"nothing":              {"", false},
	} {
		if have := ok([]byte(c.headers)); have != c.want {
			t.Errorf("%s: want %t", name, c.want)
		}
	}
}

// A goal that names a trial or target that is not there would never be printed, and nobody would see; one that compares the
// rates of two trials would compare what the machine did at two times.
func TestEveryGoalCanBeMeasured(t *testing.T) {
	full := table{}
	for _, trial := range trials() {
		found := samples{}
		for _, name := range trial.targets {
			found[name] = []sample{{exchanges: 1, bytes: 1e6, took: time.Second, p99: time.Second}}
		}
		full.add(rows(trial, found))
	}
	for _, g := range goals() {
		value, _, known := g.have(full)
		if !known {
			t.Errorf("no trial measures: %s", g.says)
		}
		if value == "0.00" {
			t.Errorf("two trials are compared: %s", g.says)
		}
	}
}

func TestMediansAndSharesCompareWithinARound(t *testing.T) {
	at := func(n int64) sample {
		return sample{exchanges: n, took: time.Second, p99: time.Duration(n), cpu: map[string]time.Duration{"pikod": time.Second}}
	}
	list := rows(trial{name: "t", targets: []string{"ref", "other"}}, samples{
		"other": {at(50), at(100), at(600)}, "ref": {at(100), at(200), at(200)},
	})
	if len(list) != 2 || list[0].target != "ref" || list[1].rate != 100 || list[1].share != 0.5 || list[1].cpu["pikod"] != 10_000 {
		t.Errorf("want the reference first, and a rate of 100, a share of 0.5, 10,000 us: have %+v", list)
	}
	if have := median([]float64{4, 1, 3, 2}); have != 2.5 {
		t.Errorf("median of four: want 2.5, have %v", have)
	}
}

func TestTheTableNamesTheProcessesInTheOrderOfTheWay(t *testing.T) {
	have := parts(map[string]float64{"load": 20, "agent": 9.9, "pikod": 12.34, "forward": 0})
	if have != "pikod 12, agent 9.9, load 20" {
		t.Errorf("have %q", have)
	}
	var b bytes.Buffer
	printGoals(&b, slices.Concat(goals(), idleGoals([]idle{{tunnels: 100, joined: time.Second, idleKiB: 99}})), table{})
	if text := b.String(); !strings.Contains(text, "| idle tunnel: at most 13 KiB in pikod | 99.0 KiB | no |") ||
		strings.Contains(text, "nginx") {
		t.Errorf("want known goals only, have:\n%s", text)
	}
}
