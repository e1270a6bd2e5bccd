package daemon

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/config"
)

// flushTimeout is how long the end of the process waits for a log that nobody reads.
const flushTimeout = 2 * time.Second

// origin is where a program's settings come from.
type origin struct {
	file     string // "": none
	optional bool   // the command line does not name the file
	load     func(file string) (Settings, error)
}

// serve runs a program with its settings until it is asked to stop, and returns the exit code.
func serve(env Env, s Settings, from origin) int {
	var log *logrus.Logger
	out := newAsync(env.Stderr, func(lines int) []byte { return droppedNotice(log, lines) })
	defer out.Close(flushTimeout)
	log, err := newLog(out, s.Log(), toJournal(env.Stderr))
	if err != nil {
		return badSettings(env, err)
	}
	// Without this the process dies of writing to a log whose reader has gone.
	signal.Ignore(syscall.SIGPIPE)
	before, err := bequeathed()
	if err != nil {
		log.WithError(err).Error("nothing taken over")
		return ExitFailure
	}
	sockets, err := inherit(before)
	if err != nil {
		log.WithError(err).Error("sockets from systemd unusable")
		return ExitFailure
	}
	p := &Process{Name: env.Program, Version: env.Version, Log: log, sockets: sockets, notify: notifier(log), legacy: before}
	p.dropped = out.Dropped
	p.mute.Store(before != nil)
	log.WithFields(logrus.Fields{"version": env.Version, "file": from.file, "settings": s.Digest(), "pid": os.Getpid()}).
		Info("starting")
	for _, w := range s.Source().Warnings() {
		log.WithField("setting", w.String()).Warn("unwise setting")
	}
	limitMemory(log)
	noCores()
	p.reload = newReloads(p, s, from)
	code := watch(p, s)
	log.WithField("code", code).Info("stopped")
	return code
}

// watch runs the program and turns signals into the end of its context, or of everything.
func watch(p *Process, s Settings) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	handovers := make(chan os.Signal, 1)
	signal.Notify(handovers, syscall.SIGUSR2)
	defer signal.Stop(handovers)

	p.end = cancel

	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, p) }() // awaited below, except by a second signal, whose purpose is not to wait
	signal.Notify(p.reload.hangup, syscall.SIGHUP)
	defer signal.Stop(p.reload.hangup)
	all, finish := context.WithCancel(context.WithoutCancel(ctx)) // lasts as long as Run
	var work sync.WaitGroup
	work.Go(func() { p.reload.run(ctx, all) })
	work.Go(func() { p.reload.control(all) })
	if timeout := watchdogTimeout(); timeout > 0 && p.notify != nil {
		work.Go(func() { p.guard(all, timeout) })
	}
	defer work.Wait()
	defer finish() // before the wait, as cancel
	defer cancel()

	var c course
	handed := make(chan error, 1)
	for {
		select {
		case err := <-ended:
			if err == nil && p.legacy != nil && p.legacy.err != nil {
				return ExitFailure // said already
			}
			return exitCode(p.Log, err, c.stopping)
		case sig := <-signals:
			if c.ignores(sig) {
				continue
			}
			if c.told {
				p.Log.WithField("signal", sig.String()).Warn("stopping at once: told twice")
				return ExitFailure
			}
			p.Log.WithField("signal", sig.String()).Info("stopping")
			if c.stop() {
				p.tell(daemon.SdNotifyStopping)
				work.Go(func() { p.stopping(all) })
				cancel()
			}
		case <-handovers:
			if c.stopping || c.handing != nil {
				p.Log.Warn("nothing handed over: it is being done, or this process stops")
				continue
			}
			c.handing = handed
			work.Go(func() { handed <- p.replace(ctx) })
		case err := <-c.handing:
			c.handing = nil
			if err != nil {
				p.Log.WithError(err).Error("not handed over: this process goes on")
				continue
			}
			c.stopping, c.replaced = true, true
			cancel()
		}
	}
}

// course is how far a process has come on its way to its end.
type course struct {
	told     bool       // to stop, by a signal
	stopping bool       // for whatever reason
	replaced bool       // systemd may take another process for the main one
	handing  chan error // nil while nothing is handed over
}

// ignores reports whether a signal says nothing new: systemd sends SIGTERM to all processes of a service, and once more when
// the main one has ended. One that was replaced drains already.
func (c *course) ignores(sig os.Signal) bool { return c.replaced && sig == syscall.SIGTERM }

// stop notes the first signal, and reports whether there is something to stop yet.
func (c *course) stop() bool {
	c.told = true
	if c.stopping {
		return false
	}
	c.stopping, c.replaced = true, c.handing != nil
	return true
}

// replace hands over to a new process of what is now at the place of this program.
func (p *Process) replace(ctx context.Context) error {
	path, err := ourProgram()
	if err != nil {
		return err
	}
	p.Log.WithField("program", path).Info("handing over to a new process")
	if err := p.handOver(ctx, path); err != nil {
		return err
	}
	p.Log.Info("handed over, and stopping")
	return nil
}

func exitCode(log *logrus.Logger, err error, stopping bool) int {
	if err == nil || stopping && errors.Is(err, context.Canceled) {
		return ExitOK
	}
	log.WithError(err).Error("stopped by an error")
	if _, ok := errors.AsType[*SettingsError](err); ok {
		return ExitSettings
	}
	if _, ok := errors.AsType[*config.Problems](err); ok {
		return ExitSettings
	}
	return ExitFailure
}

// notifier returns how to tell systemd something, or nil if it does not listen.
func notifier(log *logrus.Logger) func(string) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	return func(state string) {
		if _, err := daemon.SdNotify(false, state); err != nil {
			log.WithError(err).Warn("systemd not told")
		}
	}
}
