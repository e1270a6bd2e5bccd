// Command bench measures Piko on this machine beside what one would compare it with: nginx as a plain reverse proxy, two TCP
// relays in a row, a tunnel without what makes ours fast, and any other tunnel given by a flag. It starts all of them, and the
// service behind them, and prints one table. README.md says how to read it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	var err error
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "@") {
		err = play(os.Args[1], os.Args[2:])
	} else {
		// What is started here ends with the thread that started it, should this process be killed.
		runtime.LockOSThread()
		err = run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// play is what this program does when it has started itself as one of the others.
func play(role string, args []string) error {
	if len(args) == 0 {
		return errors.New(role + " needs arguments")
	}
	if role == "@crowd" {
		// House rule: this is the main function of a process of its own, so its context comes from nowhere.
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		n, err := strconv.Atoi(args[3])
		if err != nil {
			return err
		}
		return crowd(ctx, args[0], args[1], args[2], n)
	}
	if role == "@naive-agent" {
		return runNaiveAgent(args[0], args[1])
	}
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	switch role {
	case "@service":
		t, err := net.Listen("tcp", args[1])
		if err != nil {
			return err
		}
		go func() { _ = serveTCP(t) }() // ends with the process
		return serveHTTP(l)
	case "@relay":
		return serveRelay(l, args[1])
	case "@naive-server":
		return serveNaive(l)
	case "@naive-forward":
		return serveNaiveForward(l, args[1])
	}
	return errors.New("no role " + role)
}

// otherFlag collects -other NAME=COMMAND.
type otherFlag map[string]string

// String is what the flag package prints as the default.
func (o otherFlag) String() string { return "" }

// Set takes one.
func (o otherFlag) Set(s string) error {
	name, command, found := strings.Cut(s, "=")
	if !found || name == "" {
		return errors.New("want NAME=COMMAND")
	}
	o[name] = command
	return nil
}

func run() (err error) {
	others := otherFlag{}
	bin := flag.String("bin", "bin", "folder with pikod, piko-agent, piko-forward and, for two nodes, consul")
	full := flag.Bool("full", false, "measure longer, more cases and 10,000 tunnels")
	match := flag.String("run", "", "only the `cases` that match this regular expression; idle and endpoints are cases too")
	length := flag.Duration("duration", 0, "how long to measure each case on each target in each round (800ms, with -full 2.5s)")
	rounds := flag.Int("rounds", 0, "how many rounds (3, with -full 5)")
	tunnels := flag.Int("tunnels", 0, "how many idle tunnels (1000, with -full 10000)")
	profile := flag.String("profile", "", "only write profiles of pikod and the agent to this `folder`, in the first of the cases (64 connections)")
	flag.Var(others, "other", "another tunnel, as `NAME=COMMAND`; see README.md")
	flag.Parse()
	only, err := regexp.Compile(*match)
	if err != nil {
		return err
	}
	p := plan{warm: 200 * time.Millisecond, length: 800 * time.Millisecond, rounds: 3, tunnels: 1000, endpoints: 10_000, settle: 7 * time.Second}
	if *full {
		p = plan{warm: 500 * time.Millisecond, length: 2500 * time.Millisecond, rounds: 5, tunnels: 10_000, endpoints: 10_000, settle: 30 * time.Second}
	}
	override(&p.length, *length)
	override(&p.rounds, *rounds)
	override(&p.tunnels, *tunnels)

	dir, err := os.MkdirTemp("", "piko-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() { // ends with the process, as do those that it has started
		<-interrupted
		_ = os.RemoveAll(dir)
		os.Exit(1)
	}()
	l, err := newLab(dir, *bin, others)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.stop(0)) }()
	if *profile != "" {
		for _, t := range chosen(true, only) {
			if slices.Contains(t.targets, pikoName) && (*match != "" || t.name == trialMany) {
				return l.profile(*profile, t, p)
			}
		}
		return errors.New("-profile: no case of piko's matches " + *match)
	}
	// House rule: this is the main function, so its context comes from nowhere.
	return l.run(context.Background(), os.Stdout, p, *full, only)
}

// run measures and prints, one case after the other.
func (l *lab) run(ctx context.Context, w io.Writer, p plan, full bool, only *regexp.Regexp) error {
	began := time.Now()
	fmt.Fprintf(w, "%d cores, %s/%s, %s; %d rounds of %s; load %s\n", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH,
		runtime.Version(), p.rounds, p.length, loadAverage())
	all := table{}
	for _, t := range chosen(full, only) {
		found, err := l.try(t, p)
		if err != nil {
			// What is missing on this machine, nginx or Consul, costs its own cases only.
			fmt.Fprintf(w, "\n**%s**: left out: %v\n", t.name, err)
			continue
		}
		list := rows(t, found)
		printRows(w, list)
		all.add(list)
	}
	list := goals()
	if only.MatchString("tunnel alone") {
		list = append(list, printAlone(ctx, w, p)...)
	}
	var resting []idle
	for _, secure := range []bool{false, true} {
		if !only.MatchString("idle") {
			break
		}
		i, err := l.measureIdle(p, secure)
		if err != nil {
			fmt.Fprintf(w, "\n**idle tunnels**: left out: %v\n", err)
			continue
		}
		resting = append(resting, i)
		printIdle(w, i)
	}
	if only.MatchString("endpoints") {
		r, err := l.measureRegistration(p.endpoints)
		if err != nil {
			fmt.Fprintf(w, "\n**endpoints**: %v\n", err) // what follows was measured if only the stop took too long
		}
		fmt.Fprintf(w, "\n**One agent, %d endpoints**: there after %s; pikod +%.1f MiB and %s of CPU, agent %.1f MiB and %s of CPU\n",
			r.endpoints, r.took.Round(time.Millisecond), r.nodeMiB, r.nodeCPU, r.agentMiB, r.agentCPU)
	}
	printGoals(w, append(list, idleGoals(resting)...), all)
	fmt.Fprintf(w, "\nAll of it took %s; load %s\n", time.Since(began).Round(time.Second), loadAverage())
	return nil
}

func printIdle(w io.Writer, i idle) {
	how := ""
	if i.tls {
		how = " over TLS"
	}
	fmt.Fprintf(w, "\n**%d idle tunnels%s**: there after %s; pikod holds %.1f KiB for each", i.tunnels, how,
		i.joined.Round(time.Millisecond), i.idleKiB)
	if !i.tls {
		fmt.Fprintf(w, ", %.1f KiB just after 1 MiB through each and %.1f KiB when that has settled", i.burstMax, i.burstKiB)
	}
	fmt.Fprintln(w)
}

func override[T comparable](value *T, with T) {
	var zero T
	if with != zero {
		*value = with
	}
}

func newMeter() *meter { return &meter{phase: new(atomic.Int32)} }

// loadAverage tells what else the machine was doing.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}
