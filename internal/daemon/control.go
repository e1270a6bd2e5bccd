package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
)

// `pikod --reload PID` asks the process by a Unix socket and gets the outcome as its answer; a signal could carry none.
// The socket is in Linux's abstract namespace: it needs no directory that both may write to, and ends with the process.
// There everybody may connect, so both ends look at who the other is.

const (
	controlAsk     = "reload\n"
	controlRead    = 2 * time.Second // for the question
	controlWrite   = 5 * time.Second // for the answer
	controlTimeout = 90 * time.Second
	controlMost    = 1 << 20 // bytes of an answer
)

// controlAnswer is the outcome of a reload as the asking process gets it.
type controlAnswer struct {
	Settings string   `json:"settings"` // digest of those in use
	Changed  []string `json:"changed,omitempty"`
	Problems string   `json:"problems,omitempty"` // why nothing has changed, a line each
}

// controlName is the socket of a process. The namespace of process ids keeps two containers apart that share a network.
func controlName(program string, pid int) string {
	space, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		space = "pid"
	}
	return fmt.Sprintf("@piko/%s/%s/%d", program, space, pid)
}

// control answers those who ask for a reload, one after another, until ctx ends.
func (r *reloads) control(ctx context.Context) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: controlName(r.p.Name, os.Getpid())})
	if err != nil {
		r.p.Log.WithError(err).Warn("--reload will not work for this process, SIGHUP does")
		return
	}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			r.p.Log.WithError(err).Debug("request of a reload not accepted")
			if pause(ctx, controlRead) != nil {
				return
			}
			continue
		}
		if err := r.answer(ctx, c); err != nil {
			r.p.Log.WithFields(logrus.Fields{"err": err}).Debug("request of a reload not answered")
		}
		_ = c.Close()
	}
}

// answer reloads for one who may ask for it.
func (r *reloads) answer(ctx context.Context, c *net.UnixConn) error {
	peer, err := credentials(c)
	if err != nil {
		return err
	}
	if peer.Uid != 0 && int(peer.Uid) != os.Geteuid() {
		return fmt.Errorf("user %d may not ask for it", peer.Uid)
	}
	if err := c.SetReadDeadline(time.Now().Add(controlRead)); err != nil {
		return err
	}
	ask := make([]byte, len(controlAsk))
	if _, err := io.ReadFull(c, ask); err != nil || string(ask) != controlAsk {
		return fmt.Errorf("asked for %q: %w", ask, err)
	}
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	var answer controlAnswer
	if err := r.p.Reload(ctx); err != nil {
		answer.Problems = err.Error()
	}
	last := r.p.LastReload()
	answer.Settings, answer.Changed = last.Digest, last.Changed
	if err := c.SetWriteDeadline(time.Now().Add(controlWrite)); err != nil {
		return err
	}
	return json.NewEncoder(c).Encode(answer)
}

// askReload asks the process for a reload, prints the outcome and returns the exit code.
func askReload(env Env, pid int) int {
	answer, err := reloadOf(env.Program, pid)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return env.Failf("no %s with process id %d answers here: it is not running, it is still starting, "+
			"or it is in another container", env.Program, pid)
	case err != nil:
		return env.Failf("reload of process %d: %v", pid, err)
	case answer.Problems != "":
		for line := range strings.Lines(answer.Problems) {
			fmt.Fprintf(env.Stderr, "%s: %s\n", env.Program, clean(strings.TrimRight(line, "\n")))
		}
		return ExitFailure
	}
	fmt.Fprintf(env.Stdout, "ok %s\n", answer.Settings)
	return ExitOK
}

func reloadOf(program string, pid int) (controlAnswer, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: controlName(program, pid)})
	if err != nil {
		return controlAnswer{}, err
	}
	defer func() { _ = c.Close() }()
	peer, err := credentials(c)
	if err != nil {
		return controlAnswer{}, err
	}
	if int(peer.Pid) != pid {
		return controlAnswer{}, fmt.Errorf("process %d has taken its place", peer.Pid)
	}
	if err := c.SetDeadline(time.Now().Add(controlTimeout)); err != nil {
		return controlAnswer{}, err
	}
	if _, err := io.WriteString(c, controlAsk); err != nil {
		return controlAnswer{}, err
	}
	var answer controlAnswer
	err = json.NewDecoder(bufio.NewReader(io.LimitReader(c, controlMost))).Decode(&answer)
	if errors.Is(err, io.EOF) {
		return controlAnswer{}, errors.New("it gave no answer: it takes them from its own user and root only, and is not " +
			"about to stop")
	}
	return answer, err
}

// credentials tells which process is at the other end of a Unix socket (SO_PEERCRED, unix(7)).
func credentials(c *net.UnixConn) (*syscall.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *syscall.Ucred
	var bad error
	err = raw.Control(func(fd uintptr) {
		cred, bad = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err := errors.Join(err, bad); err != nil {
		return nil, fmt.Errorf("who is at the other end: %w", err)
	}
	return cred, nil
}

// pause waits, or returns the reason why ctx has ended.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
