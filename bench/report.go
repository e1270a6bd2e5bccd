package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// row is a line of the table: what one target did in one trial, each number the median of its rounds.
type row struct {
	trial, target string
	rate          float64            // exchanges or MB in a second
	shares        map[string]float64 // of each target's rate in the same round
	share         float64            // the same of the reference
	p50, p99      time.Duration
	slower        float64            // p99 as a multiple of the reference's in the same round
	cpu           map[string]float64 // microseconds for an exchange, or for a MB
	allocs        map[string]float64 // for an exchange
	errs          int
	err           error
	bulk          bool
}

// rows puts the references first and the rest as they were named.
func rows(t trial, found samples) []row {
	names := slices.SortedFunc(maps.Keys(found), func(a, b string) int {
		place := func(name string) int {
			if i := slices.Index(t.targets, name); i >= 0 {
				return i
			}
			return len(t.targets)
		}
		return cmp.Or(cmp.Compare(place(a), place(b)), cmp.Compare(a, b))
	})
	var list []row
	for _, name := range names {
		r := summary(t, name, found[name], found[t.targets[0]])
		for other, all := range found {
			r.shares[other] = summary(t, name, found[name], all).share
		}
		list = append(list, r)
	}
	return list
}

func summary(t trial, name string, all, reference []sample) row {
	r := row{trial: t.name, target: name, bulk: t.bulk, shares: map[string]float64{}, cpu: map[string]float64{}, allocs: map[string]float64{}}
	over := func(value func(s, ref sample) float64) float64 {
		values := make([]float64, len(all))
		for i, s := range all {
			values[i] = value(s, reference[i])
		}
		return median(values)
	}
	units := func(s sample) float64 {
		if t.bulk {
			return float64(s.bytes) / 1e6
		}
		return float64(s.exchanges)
	}
	rate := func(s sample) float64 { return units(s) / s.took.Seconds() }
	r.rate = over(func(s, _ sample) float64 { return rate(s) })
	r.share = over(func(s, ref sample) float64 { return rate(s) / rate(ref) })
	r.p50 = time.Duration(over(func(s, _ sample) float64 { return float64(s.p50) }))
	r.p99 = time.Duration(over(func(s, _ sample) float64 { return float64(s.p99) }))
	r.slower = over(func(s, ref sample) float64 { return float64(s.p99) / float64(ref.p99) })
	for label := range all[0].cpu {
		r.cpu[label] = over(func(s, _ sample) float64 { return float64(s.cpu[label].Microseconds()) / units(s) })
	}
	for label := range all[0].allocs {
		r.allocs[label] = over(func(s, _ sample) float64 { return s.allocs[label] / units(s) })
	}
	for _, s := range all {
		if r.errs += s.errs; s.err != nil {
			r.err = s.err
		}
	}
	return r
}

func median(values []float64) float64 {
	values = slices.Sorted(slices.Values(values))
	middle := len(values) / 2
	if len(values)%2 == 0 {
		return (values[middle-1] + values[middle]) / 2
	}
	return values[middle]
}

// labels in the order of the way from the client to the service.
var labels = []string{"nginx", "relay", "naive-forward", "forward", "naive-server", "pikod", "far pikod", "naive-agent", "agent", "service", "load"}

// parts prints numbers by label; those of other tunnels, whose labels are not known here, come first.
func parts(values map[string]float64) string {
	var words []string
	names := slices.SortedFunc(maps.Keys(values), func(a, b string) int {
		return cmp.Or(cmp.Compare(slices.Index(labels, a), slices.Index(labels, b)), cmp.Compare(a, b))
	})
	for _, name := range names {
		if values[name] < 0.05 {
			continue // it is not on this way
		}
		words = append(words, fmt.Sprintf("%s %.*f", strings.TrimPrefix(name, "naive-"), digits(values[name]), values[name]))
	}
	return strings.Join(words, ", ")
}

// digits keeps three digits that mean something.
func digits(v float64) int {
	if v < 9.95 {
		return 1
	}
	return 0
}

const (
	tableHead = "| target | per second | of first | p50 | p99 | p99 of first | CPU us each | allocations each |\n|---|---|---|---|---|---|---|---|\n"
)

// printRows writes the part of the table that belongs to one trial, in Markdown that also reads well as it is.
func printRows(w io.Writer, list []row) {
	fmt.Fprintf(w, "\n**%s**\n\n%s", list[0].trial, tableHead)
	for _, r := range list {
		rate, p50, p99, slower := fmt.Sprintf("%.0f", r.rate), brief(r.p50), brief(r.p99), fmt.Sprintf("x %.2f", r.slower)
		if r.bulk {
			rate, p50, p99, slower = fmt.Sprintf("%.0f MB", r.rate), "", "", ""
		}
		fmt.Fprintf(w, "| %s | %s | %.2f | %s | %s | %s | %s | %s |\n", r.target, rate, r.share, p50, p99, slower, parts(r.cpu), parts(r.allocs))
		if r.errs > 0 {
			fmt.Fprintf(w, "\n%s: %d clients stopped early, one by: %v\n\n", r.target, r.errs, r.err)
		}
	}
}

func brief(d time.Duration) string {
	switch {
	case d < 10*time.Microsecond:
		return fmt.Sprintf("%.1f us", float64(d)/1e3)
	case d < time.Millisecond:
		return fmt.Sprintf("%.0f us", float64(d)/1e3)
	}
	return fmt.Sprintf("%.1f ms", float64(d)/1e6)
}
