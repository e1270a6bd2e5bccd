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
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// At SIGUSR2 a process starts its own program anew, as it is on the disk by then, gives it all its listening sockets, and
// stops when the new one serves. Nobody has to wait for a connection meanwhile, and what runs finishes in the old process.
//
//	old                                              new
//	 │ starts it with LISTEN_FDS, LISTEN_FDNAMES      │
//	 │ ── offer: what the assembly says ────────────► │ loads, binds nothing that it was given
//	 │ ◄──────────── ready: what its assembly says ── │ could serve
//	 │ systemd: MAINPID=new                           │
//	 │ ── take ─────────────────────────────────────► │ serves
//	 │ ◄──────────────────────────────────── serving  │ from now on it talks to systemd
//	 │ closes its listeners, drains, ends             │
//
// If anything goes wrong before "serving", the new process is ended and the old one goes on as if nothing had been.

const (
	handoverEnv     = "PIKO_HANDOVER"
	handoverStart   = 30 * time.Second // for the new process to become ready
	handoverAnswer  = 5 * time.Second  // for every other step
	handoverLongest = 64 << 10         // bytes of a message
)

// Handover is an assembly with more to hand over than its listening sockets. Each step may fail, and then nothing is handed
// over.
type Handover interface {
	// Offer returns what the new process is to know at its start.
	Offer(ctx context.Context) (any, error)
	// Accepted hears what the new process said when it was ready to serve.
	Accepted(ctx context.Context, answer json.RawMessage) error
	// Yield closes all listeners: the new process serves, and the context of Run ends next.
	Yield()
}

// message is a line between two processes.
type message struct {
	Step string          `json:"step"`
	Data json.RawMessage `json:"data,omitempty"`
}

// link is one end of the connection between two processes.
type link struct {
	c *net.UnixConn
	r *bufio.Reader
}

func newLink(fd int) (*link, error) {
	f := os.NewFile(uintptr(fd), "handover")
	defer func() { _ = f.Close() }() // FileConn works on a duplicate
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("descriptor %d is no Unix socket", fd)
	}
	return &link{u, bufio.NewReaderSize(io.LimitReader(u, 4*handoverLongest), handoverLongest)}, nil
}

func (l *link) send(step string, data any) error {
	m := message{Step: step}
	var err error
	if m.Data, err = json.Marshal(data); err != nil {
		return err
	}
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := l.c.SetWriteDeadline(time.Now().Add(handoverAnswer)); err != nil {
		return err
	}
	_, err = l.c.Write(append(line, '\n'))
	return err
}

// receive waits for one step.
func (l *link) receive(step string, within time.Duration) (json.RawMessage, error) {
	if err := l.c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return nil, err
	}
	line, err := l.r.ReadSlice('\n')
	if err != nil {
		return nil, fmt.Errorf("%q awaited: %w", step, err)
	}
	var m message
	if err := json.Unmarshal(line, &m); err != nil || m.Step != step {
		return nil, fmt.Errorf("%q awaited, have %q", step, line)
	}
	return m.Data, nil
}

// legacy is what a process has from the one that it takes over from. Nil: it takes over from none.
type legacy struct {
	link  *link
	kinds []string // of the listening sockets: unit or own
	offer json.RawMessage

	once, served sync.Once
	err          error // of what was done once
}

const (
	kindUnit = "unit" // systemd opened it
	kindOwn  = "own"
)

// bequeathed finds out from the environment whether there is a predecessor, and makes its sockets look like systemd's.
func bequeathed() (*legacy, error) {
	value, ok := os.LookupEnv(handoverEnv)
	if !ok {
		return nil, nil //nolint:nilnil // the usual case
	}
	if err := errors.Join(os.Unsetenv(handoverEnv), os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid())),
		os.Unsetenv("WATCHDOG_PID")); err != nil {
		return nil, err
	}
	number, kinds, _ := strings.Cut(value, " ")
	fd, err := strconv.Atoi(number)
	if err != nil {
		return nil, fmt.Errorf("%s is %q", handoverEnv, value)
	}
	syscall.CloseOnExec(fd)
	g := &legacy{kinds: strings.Fields(kinds)}
	if g.link, err = newLink(fd); err == nil {
		g.offer, err = g.link.receive("offer", handoverAnswer)
	}
	if err != nil {
		return nil, fmt.Errorf("take over from the process before: %w", err)
	}
	return g, nil
}

// isUnit reports whether the socket of that number was opened by systemd.
func (g *legacy) isUnit(i int) bool { return g == nil || i >= len(g.kinds) || g.kinds[i] == kindUnit }

// succeed says that this process can serve and waits for the word. Only the first call does something.
func (g *legacy) succeed(answer any) error {
	g.once.Do(func() {
		if g.err = g.link.send("ready", answer); g.err == nil {
			_, g.err = g.link.receive("take", handoverAnswer)
		}
	})
	return g.err
}

// serving says that this process serves. Only the first call does something.
func (g *legacy) serving() error {
	if err := g.succeed(nil); err != nil {
		return err
	}
	g.served.Do(func() {
		g.err = g.link.send("serving", nil)
		_ = g.link.c.Close() // it has served its purpose
	})
	return g.err
}

// Predecessor returns what the process that this one takes over from has offered; false if there is none.
func (p *Process) Predecessor() (offer json.RawMessage, ok bool) {
	if p.legacy == nil {
		return nil, false
	}
	return p.legacy.offer, true
}

// Succeed tells the process that this one takes over from that all is ready, with an answer for its assembly, and returns
// when this one is to serve. Without a predecessor it does nothing. After an error the process must end.
func (p *Process) Succeed(answer any) error {
	if p.legacy == nil {
		return nil
	}
	if err := p.legacy.succeed(answer); err != nil {
		return fmt.Errorf("take over from the process before: %w", err)
	}
	return nil
}

// HandsOver says what the assembly has to hand over. It is called before [Process.Ready], once, if at all.
func (p *Process) HandsOver(h Handover) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handover = h
}

// successor is a process that is being started.
type successor struct {
	pid  int
	fd   int // pidfd_open(2); -1: the kernel has none
	link *link
}

// end ends a successor that has served nobody, and waits for that.
func (s *successor) end() {
	if s.fd < 0 {
		_ = syscall.Kill(s.pid, syscall.SIGKILL)
	} else if unix.PidfdSendSignal(s.fd, syscall.SIGKILL, nil, 0) == nil { // else it has ended
		ended := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}} //nolint:gosec // a descriptor
		for {
			if _, err := unix.Poll(ended, int(handoverAnswer.Milliseconds())); !errors.Is(err, unix.EINTR) {
				break
			}
		}
	}
	_, _ = syscall.Wait4(s.pid, nil, 0, nil) // an error says that it is the child of another process
}

// close lets go of a successor.
func (s *successor) close() {
	_ = s.link.c.Close()
	if s.fd >= 0 {
		_ = unix.Close(s.fd)
	}
}

// errFirst is why a process hands nothing over that the kernel ends all others with.
var errFirst = errors.New("this is the first process of its container, and no other one goes on when it ends: " +
	"start a new container instead")

// survivable reports whether other processes go on when the one of that id ends: the first one of a namespace takes all
// with it (pid_namespaces(7)), so that its successor would be killed as soon as it has drained.
func survivable(pid int) error {
	if pid == 1 {
		return errFirst
	}
	return nil
}

// handOver starts another process and returns when it serves and systemd knows. With an error nothing has changed.
func (p *Process) handOver(ctx context.Context, path string) error {
	p.mu.Lock()
	ready, h := p.ready, p.handover
	p.mu.Unlock()
	if err := survivable(os.Getpid()); err != nil {
		return err
	}
	if !ready {
		return errors.New("this process is not ready itself")
	}
	var offer any
	if h != nil {
		var err error
		if offer, err = h.Offer(ctx); err != nil {
			return err
		}
	}
	s, err := p.spawn(path)
	if err != nil {
		return fmt.Errorf("start %s: %w", path, err)
	}
	defer s.close()
	defer context.AfterFunc(ctx, func() { _ = s.link.c.Close() })() // told to stop: nothing is handed over any more
	if err := p.install(ctx, s, h, offer); err != nil {
		s.end()
		return err
	}
	return nil
}

// install takes the new process through the steps.
func (p *Process) install(ctx context.Context, s *successor, h Handover, offer any) error {
	if err := s.link.send("offer", offer); err != nil {
		return err
	}
	answer, err := s.link.receive("ready", handoverStart)
	if err != nil {
		return fmt.Errorf("process %d is not ready: %w", s.pid, err)
	}
	if h != nil {
		if err := h.Accepted(ctx, answer); err != nil {
			return err
		}
	}
	p.tell(fmt.Sprintf("MAINPID=%d\nREADY=1", s.pid))
	err = s.link.send("take", nil)
	if err == nil {
		_, err = s.link.receive("serving", handoverAnswer)
	}
	if err != nil {
		p.tell(fmt.Sprintf("MAINPID=%d", os.Getpid())) // systemd may not listen to this one any more; it sees the other end
		return fmt.Errorf("process %d does not serve: %w", s.pid, err)
	}
	p.mute.Store(true)
	p.sockets.pass()
	if h != nil {
		h.Yield()
	}
	return nil
}

// pass notes that another process has all the sockets.
func (s *sockets) pass() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.open {
		l.passed = true
	}
}

// spawn starts a process with the listening sockets of this one.
func (p *Process) spawn(path string) (*successor, error) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = syscall.Close(pair[1]) }()
	ours, err := newLink(pair[0])
	if err != nil {
		return nil, err
	}
	fds, names, kinds, err := p.sockets.dup()
	defer func() {
		for _, fd := range fds {
			_ = syscall.Close(fd)
		}
	}()
	if err != nil {
		_ = ours.c.Close()
		return nil, err
	}
	env := append(os.Environ(), "LISTEN_FDS="+strconv.Itoa(len(fds)), "LISTEN_FDNAMES="+strings.Join(names, ":"),
		handoverEnv+"="+strconv.Itoa(firstSocket+len(fds))+" "+strings.Join(kinds, " "))
	files := []uintptr{0, 1, 2}
	for _, fd := range fds {
		files = append(files, uintptr(fd))
	}
	s := &successor{fd: -1, link: ours}
	sys := &syscall.SysProcAttr{PidFD: &s.fd}
	if p.notify != nil {
		// A child of systemd's, as this one is: it does not wait for the end of a main process that is none, and kills it.
		sys.Cloneflags = syscall.CLONE_PARENT
	}
	// Not by package os/exec: it would make the sockets blocking, for this process too.
	//nolint:gosec // it is this program
	s.pid, err = syscall.ForkExec(path, os.Args, &syscall.ProcAttr{Env: env, Files: append(files, uintptr(pair[1])), Sys: sys})
	if err != nil {
		_ = ours.c.Close()
		return nil, err
	}
	return s, nil
}

// firstSocket is the descriptor of the first socket (sd_listen_fds(3)).
const firstSocket = 3

// dup returns descriptors of all open sockets, which the caller closes, with their names and kinds.
func (s *sockets) dup() (fds []int, names, kinds []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.open {
		fd, err := l.duplicate()
		if err != nil {
			return fds, names, kinds, err
		}
		kind := kindOwn
		if l.unit {
			kind = kindUnit
		}
		fds, names, kinds = append(fds, fd), append(names, l.name), append(kinds, kind)
	}
	return fds, names, kinds, nil
}

// ourProgram returns the path that this program was started by: what lies there is what shall be started next time. That is
// not the path of the running file, which an upgrade has removed.
func ourProgram() (string, error) {
	path, err := exec.LookPath(os.Args[0])
	if err != nil {
		return os.Executable()
	}
	return filepath.Abs(path)
}
