package main

import (
	"fmt"
	"io"
	"time"
)

// goal is a claim about the table.
type goal struct {
	says string
	have func(t table) (value string, met, known bool)
}

// table finds rows by trial and target.
type table map[[2]string]row

func (t table) add(list []row) {
	for _, r := range list {
		t[[2]string{r.trial, r.target}] = r
	}
}

// of computes a number from two rows, or says that one is missing.
func (t table) of(a, b [2]string, f func(a, b row) float64) (float64, bool) {
	ra, haveA := t[a]
	rb, haveB := t[b]
	if !haveA || !haveB {
		return 0, false
	}
	return f(ra, rb), true
}

// most and least make goals that compare one number, of two rows, with a bound.
func most(says, unit string, bound float64, a, b [2]string, f func(a, b row) float64) goal {
	return goal{says, func(t table) (string, bool, bool) {
		v, known := t.of(a, b, f)
		return fmt.Sprintf("%.*f%s", places(unit), v, unit), v <= bound, known
	}}
}

func least(says, unit string, bound float64, a, b [2]string, f func(a, b row) float64) goal {
	return goal{says, func(t table) (string, bool, bool) {
		v, known := t.of(a, b, f)
		return fmt.Sprintf("%.*f%s", places(unit), v, unit), v >= bound, known
	}}
}

func places(unit string) int {
	if unit == "" {
		return 2
	}
	return 1
}

func goals() []goal {
	of := func(trial string) [2]string { return [2]string{trial, pikoName} }
	one, many, crowd, hop := of(trialOne), of(trialMany), of(trialCrowd), [2]string{trialHop, pikoHop}
	share := func(a, _ row) float64 { return a.share }
	slower := func(a, _ row) float64 { return a.slower }
	rates := func(a, b row) float64 { return a.shares[b.target] } // in one round
	cpu := func(label string) func(a, _ row) float64 { return func(a, _ row) float64 { return a.cpu[label] } }
	allocs := func(label string) func(a, _ row) float64 { return func(a, _ row) float64 { return a.allocs[label] } }
	p99 := func(a, _ row) float64 { return float64(a.p99) / float64(time.Millisecond) }
	added := func(a, b row) float64 { return float64(a.p50-b.p50) / float64(time.Microsecond) }
	return []goal{
		least("64 connections: at least 0.75 of nginx's rate", "", 0.75, many, many, share),
		most("64 connections: p99 at most twice nginx's", "", 2, many, many, slower),
		most("pikod: at most 24 us of CPU for a request", " us", 24, many, many, cpu("pikod")),
		most("pikod: at most 8 allocations for a request", " allocations", 8, many, many, allocs("pikod")),
		most("agent: at most 18 us of CPU for a request", " us", 18, many, many, cpu("agent")),
		most("agent: at most 3 allocations for a request", " allocations", 3, many, many, allocs("agent")),
		most("1 connection: at most 100 us added at the median", " us", 100, one, [2]string{trialOne, direct}, added),
		most("256 connections: p99 at most three times nginx's", "", 3, crowd, crowd, slower),
		least("256 connections: no collapse, at least 0.8 of the rate at 64", "", 0.8, crowd, [2]string{trialCrowd, pikoFew}, rates),
		least("through a second node: at least 0.6 of the local rate", "", 0.6, hop, of(trialHop), rates),
		least("TCP echo: at least 1.3 times a tunnel that joins no writes", "", 1.3, of(trialTCP), [2]string{trialTCP, naive}, rates),
		least("TCP bulk down: at least 0.65 of two relays", "", 0.65, of(trialDown), of(trialDown), share),
		least("TCP bulk up: at least 0.65 of two relays", "", 0.65, of(trialUp), of(trialUp), share),
		most("beside a download: p99 of small requests below 5 ms", " ms", 5, of(trialBeside), of(trialBeside), p99),
		most("beside a slow reader: p99 of small requests below 5 ms", " ms", 5, of(trialSlowPeer), of(trialSlowPeer), p99),
		least("HTTP/2: at least 0.5 of the HTTP/1.1 rate", "", 0.5, of(trialHTTP2), [2]string{trialHTTP2, pikoFew}, rates),
		least("gRPC: at least 0.5 of the HTTP/1.1 rate", "", 0.5, of(trialGRPC), [2]string{trialGRPC, pikoFew}, rates),
		least("WebSocket echo: at least 0.8 of the TCP rate", "", 0.8, of(trialSocket), [2]string{trialSocket, pikoPlain}, rates),
	}
}

// idleGoals are about memory and joining.
func idleGoals(all []idle) []goal {
	var list []goal
	add := func(says, unit string, bound, have float64) {
		list = append(list, goal{says, func(table) (string, bool, bool) {
			return fmt.Sprintf("%.1f%s", have, unit), have <= bound, true
		}})
	}
	for _, i := range all {
		bound, how := 13.0, ""
		if i.tls {
			bound, how = 21, " with TLS"
		}
		add(fmt.Sprintf("idle tunnel%s: at most %.0f KiB in pikod", how, bound), " KiB", bound, i.idleKiB)
		if !i.tls {
			add("the same after 1 MiB has passed: at most 45 KiB", " KiB", 45, i.burstKiB)
			add("10,000 tunnels connect in under 30 s (from the rate of this run)", " s", 30, i.joined.Seconds()*10_000/float64(i.tunnels))
		}
	}
	return list
}

func printGoals(w io.Writer, list []goal, t table) {
	fmt.Fprintf(w, "\n**Goals**\n\n| goal | here | met |\n|---|---|---|\n")
	for _, g := range list {
		if value, met, known := g.have(t); known {
			fmt.Fprintf(w, "| %s | %s | %s |\n", g.says, value, map[bool]string{true: "yes", false: "no"}[met])
		}
	}
}
