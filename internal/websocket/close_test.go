package websocket

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestCloseSendsOneCloseFrame(t *testing.T) {
	tests := []struct {
		name  string
		close func(*Conn) error
		want  string
	}{
		{"Close", (*Conn).Close, closing(1000, "")},
		{"CloseWith", func(c *Conn) error { return c.CloseWith(1001, "drain") }, closing(1001, "drain")},
		{"CloseWrite, then CloseWith", func(c *Conn) error {
			if err := c.CloseWrite(); err != nil {
				return err
			}
			return c.CloseWith(1001, "")
		}, closing(1000, "")},
		{"Close twice", func(c *Conn) error { return errors.Join(c.Close(), c.Close()) }, closing(1000, "")},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			socket, client := rawServer(t, nil)
			if err := test.close(client); err != nil {
				t.Fatal(err)
			}
			if got, err := readRaw(socket); err != nil || got != (received{0x88, true, test.want}) {
				t.Fatalf("got %+v, %v", got, err)
			}
			if _, err := socket.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Fatalf("after the close frame: %v", err)
			}
			if err := client.Ping(nil); err == nil {
				t.Fatal("ping on a closed connection")
			}
			if err := client.SetWriteDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
				t.Fatalf("deadline on a closed connection: %v", err)
			}
		})
	}
}

func TestCloseUnblocksRead(t *testing.T) {
	_, client := rawServer(t, nil)
	done := make(chan error, 1)
	go func() {
		_, err := client.Read(make([]byte, 1))
		done <- err
	}()
	waitFor(t, func() bool {
		if client.rmu.TryLock() {
			client.rmu.Unlock()
			return false
		}
		return true
	})
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Fatalf("read ended with %v", err)
	}
}

func TestCloseOfAStuckConnectionResetsInTime(t *testing.T) {
	socket, client := rawServer(t, nil)
	if err := client.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	writer := stuck(t, client, socket)
	begun := time.Now()
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 30*closeTimeout {
		t.Fatalf("close took %v", took)
	}
	if err := <-writer; err == nil {
		t.Fatal("the writer was not told")
	}
	if _, err := io.Copy(io.Discard, socket); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("peer of a broken stream sees %v, want a reset", err)
	}
}

// TestResetInterruptsClose tries it some times, as a busy machine may take longer than the limit without a fault of ours.
func TestResetInterruptsClose(t *testing.T) {
	quickest := time.Hour
	for range 5 {
		quickest = min(quickest, resetDuringClose(t))
	}
	if quickest > closeTimeout {
		t.Fatalf("reset during close took %v at best", quickest)
	}
}

func resetDuringClose(t *testing.T) time.Duration {
	t.Helper()
	socket, client := rawServer(t, nil)
	if err := client.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	writer := stuck(t, client, socket)
	var wg sync.WaitGroup
	begun := time.Now()
	wg.Go(func() { _ = client.Close() })
	waitFor(t, func() bool {
		client.dmu.Lock()
		defer client.dmu.Unlock()
		return client.pinned
	})
	_ = client.Reset() // it may find the socket closed already
	wg.Wait()
	<-writer
	return time.Since(begun)
}

func TestResetReachesThePeersTCPUnderTLS(t *testing.T) {
	address, config, accepted := serveTLS(t)
	client, _, err := Dial(t.Context(), address, DialOptions{Proxy: noProxy, TLS: config})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Reset()
	server := <-accepted
	defer server.Reset()
	limit(t, client, server)
	if err := server.Reset(); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read after the peer's reset: %v", err)
	}
}

func TestEverythingAtOnce(t *testing.T) {
	ends := map[string]func(*Conn) error{"close": (*Conn).Close, "reset": (*Conn).Reset}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			for range 20 {
				client, server := pair(t, AcceptOptions{}, DialOptions{})
				limit(t, client, server)
				var wg sync.WaitGroup
				moved := make(chan struct{})
				var once sync.Once
				for _, c := range []*Conn{client, server} {
					for range 2 {
						wg.Go(func() {
							p := make([]byte, 5000)
							for {
								if _, err := c.Read(p); err != nil {
									return
								}
								once.Do(func() { close(moved) })
							}
						})
						wg.Go(func() {
							p := make([]byte, HeaderRoom+3000)
							for {
								if err := c.WriteReserved(p); err != nil {
									return
								}
								if _, err := c.Write(p); err != nil {
									return
								}
							}
						})
					}
					wg.Go(func() {
						for range 50 { // within the peer's budget
							if c.Ping([]byte("p")) != nil {
								return
							}
							_ = c.LastRead()
							_ = c.SetReadDeadline(time.Now().Add(time.Minute))
						}
					})
				}
				<-moved
				for _, c := range []*Conn{client, server} {
					wg.Go(func() { _ = end(c) })
					wg.Go(func() { _ = c.CloseWrite() })
				}
				wg.Wait()
			}
		})
	}
}
