//go:build linux && !race && !386 && !s390x

package socket

import (
	"errors"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// receive calls Receive once on conn.
func receive(t *testing.T, r *Receiver, conn net.Conn, room int) (string, bool, error) {
	t.Helper()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, room)
	var n int
	var dry bool
	var failed error
	if err := raw.Control(func(fd uintptr) { n, dry, failed = r.Receive(fd, p) }); err != nil {
		t.Fatal(err)
	}
	return string(p[:n]), dry, failed
}

func TestReceiverTellsWhenASocketIsDry(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			near, far := pair(t, network)
			var r Receiver
			want := func(room int, text string, isDry bool) {
				t.Helper()
				isDry = isDry && network == "tcp"
				if got, dry, err := receive(t, &r, near, room); got != text || dry != isDry || err != nil {
					t.Fatalf("read %q, dry %t, %v; want %q, %t", got, dry, err, text, isDry)
				}
			}
			write := func(text string) {
				t.Helper()
				if _, err := far.Write([]byte(text)); err != nil {
					t.Fatal(err)
				}
			}
			write("it is asked to tell only when it pays")
			want(100, "it is asked to tell only when it pays", false)
			for range askAfter {
				if _, dry, err := receive(t, &r, near, 100); !errors.Is(err, syscall.EAGAIN) || dry {
					t.Fatalf("nothing to read gave %v, dry %t", err, dry)
				}
			}
			write("abcd")
			want(3, "abc", false)
			want(3, "d", true)
			write("abc")
			want(3, "abc", true)
			write("last")
			if err := far.Close(); err != nil {
				t.Fatal(err)
			}
			if !Waiting(near) {
				t.Fatal("nothing has come")
			}
			if network == "tcp" {
				awaitEnd(t, near)
			}
			want(100, "last", false)
			want(100, "", false)
		})
	}
}

// awaitEnd waits until the end of the far direction has come, behind what there is to be read.
func awaitEnd(t *testing.T, conn net.Conn) {
	t.Helper()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		look := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		for {
			if _, err := unix.Poll(look, 60_000); !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if look[0].Revents&unix.POLLRDHUP == 0 {
			t.Error("no end has come")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
