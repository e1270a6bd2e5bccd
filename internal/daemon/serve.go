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
	sockets, err := inherit()
	if err != nil {
		log.WithError(err).Error("sockets from systemd unusable")
		return ExitFailure
	}
	p := &Process{Name: env.Program, Version: env.Version, Log: log, sockets: sockets, notify: notifier(log)}
	log.WithFields(logrus.Fields{"version": env.Version, "file": from.file, "settings": s.Digest(), "pid": os.Getpid()}).
		Info("starting")
	limitMemory(log)
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

	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, p) }() // awaited below, except by a second signal, whose purpose is not to wait
	signal.Notify(p.reload.hangup, syscall.SIGHUP)
	defer signal.Stop(p.reload.hangup)
	var reloads sync.WaitGroup
	reloads.Go(func() { p.reload.run(ctx) })
	reloads.Go(func() { p.reload.control(ctx) })
	defer reloads.Wait()
	defer cancel() // before the wait

	stopping := false
	for {
		select {
		case err := <-ended:
			return exitCode(p.Log, err, stopping)
		case sig := <-signals:
			if stopping {
				p.Log.WithField("signal", sig.String()).Warn("stopping at once: told twice")
				return ExitFailure
			}
			stopping = true
			p.Log.WithField("signal", sig.String()).Info("stopping")
			p.tell(daemon.SdNotifyStopping)
			cancel()
		}
	}
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
