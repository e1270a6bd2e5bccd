package forward

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/pikoproxy/piko"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/pikotest/ports"
)

// reload changes the settings of a running forwarder.
func (h *harness) reload(change func(*config.Forward)) error {
	h.Helper()
	c := h.fwd.current.Load().settings
	c.Forwards = append([]config.ForwardEntry(nil), c.Forwards...)
	change(&c)
	got, err := h.fwd.Prepare(c)
	if err != nil {
		return err
	}
	got.Commit()
	got.Retire()
	return nil
}

// say answers each piece at once with a prefix.
func say(prefix string) func(*piko.Conn) {
	return func(c *piko.Conn) {
		defer func() { _ = c.Close() }()
		b := make([]byte, 64)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			if _, err := io.WriteString(c, prefix+string(b[:n])); err != nil {
				return
			}
		}
	}
}

func exchange(t *testing.T, c net.Conn, text, want string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("answer is %q, %v; want %q", b, err, want)
	}
}

func TestReloadAddsRemovesAndChangesForwards(t *testing.T) {
	h := start(t, "127.0.0.1:0", nil)
	h.offer(say("one "))
	running := h.dial()
	exchange(t, running, "a", "one a")

	// Another one is added; the first is not touched.
	spare := free(t)
	if err := h.reload(func(c *config.Forward) {
		c.Forwards = append(c.Forwards, config.ForwardEntry{Listen: config.Address(spare), Endpoint: c.Forwards[0].Endpoint})
	}); err != nil {
		t.Fatal(err)
	}
	added, err := net.Dial("tcp", spare)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = added.Close() }()
	_ = added.SetDeadline(time.Now().Add(time.Minute))
	exchange(t, added, "b", "one b")

	// The first is removed: nothing new, and what runs goes on.
	old := h.fwd.current.Load().forwards[0].ln.Addr().String()
	if err := h.reload(func(c *config.Forward) { c.Forwards = c.Forwards[1:] }); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the listener", func() bool {
		c, err := net.Dial("tcp", old)
		if err == nil {
			_ = c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	exchange(t, running, "c", "one c")

	// The other one leads elsewhere: its socket stays, and so does what runs through it.
	before := h.fwd.current.Load().forwards[0]
	if err := h.reload(func(c *config.Forward) { c.Forwards[0].Endpoint = "nobody" }); err != nil {
		t.Fatal(err)
	}
	if h.fwd.current.Load().forwards[0] != before {
		t.Error("the listener was opened anew")
	}
	exchange(t, added, "d", "one d")
	third, err := net.Dial("tcp", spare)
	if err == nil {
		_ = third.SetDeadline(time.Now().Add(time.Minute))
		if _, err := io.ReadAll(third); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a connection to an endpoint that nobody offers ends with %v, want it broken off", err)
		}
		_ = third.Close()
	}
}

func TestReloadThatCanNotBindChangesNothing(t *testing.T) {
	h := start(t, "127.0.0.1:0", nil)
	h.offer(say("one "))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	spare := free(t)
	err = h.reload(func(c *config.Forward) {
		c.Forwards[0].Endpoint = "nobody"
		c.Forwards = append(c.Forwards,
			config.ForwardEntry{Listen: config.Address(spare), Endpoint: "x"},
			config.ForwardEntry{Listen: config.Address(taken.Addr().String()), Endpoint: "y"})
	})
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("have %v", err)
	}
	exchange(t, h.dial(), "a", "one a")
	if c, err := net.Dial("tcp", spare); err == nil {
		_ = c.Close()
		t.Error("half of the refused forwards is open")
	}
}

func TestReloadTakesAnotherServer(t *testing.T) {
	h := start(t, "127.0.0.1:0", nil)
	h.offer(say("one "))
	running := h.dial()
	exchange(t, running, "a", "one a")
	if err := h.reload(func(c *config.Forward) { c.Connect.URL = "http://" + free(t) }); err != nil {
		t.Fatal(err)
	}
	exchange(t, running, "b", "one b")
	h.aborted()
	if err := h.reload(func(c *config.Forward) { c.Connect.TLS.CA = "/no/such/ca" }); err == nil {
		t.Error("a CA that is not there is taken")
	}
}

// free returns an address that nobody listens on, and nobody else will.
func free(t *testing.T) string {
	t.Helper()
	p, err := ports.Keep()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Release)
	return p.Addr
}
