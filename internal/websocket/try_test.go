package websocket

import (
	"bytes"
	"io"
	"sync"
	"testing"
	"time"
)

func TestTryWriteNeitherWaitsNorLosesAnything(t *testing.T) {
	for name, from := range map[string]func(client, server *Conn) (*Conn, *Conn){
		"client": func(client, server *Conn) (*Conn, *Conn) { return client, server },
		"server": func(client, server *Conn) (*Conn, *Conn) { return server, client },
	} {
		t.Run(name, func(t *testing.T) {
			writer, reader := from(pair(t, AcceptOptions{}, DialOptions{}))
			limit(t, writer, reader)
			data := random(40 << 20) // more than the kernel takes
			sent, full := 0, false
			for sent < len(data) && !full {
				n := writer.TryWrite(data[sent:min(len(data), sent+50_000)])
				sent += n
				full = n == 0
			}
			if !full {
				t.Fatal("the socket has taken everything")
			}
			if err := writer.Ping([]byte("x")); err != nil { // waits behind the rest of the frame
				t.Fatal(err)
			}
			var all sync.WaitGroup
			all.Go(func() {
				for sent < len(data) {
					if sent += writer.TryWrite(data[sent:min(len(data), sent+70_000)]); sent == len(data) {
						break
					}
					n, err := writer.Write(data[sent : sent+1])
					if sent += n; err != nil {
						t.Error(err)
						return
					}
				}
				if err := writer.CloseWrite(); err != nil {
					t.Error(err)
				}
			})
			have, err := io.ReadAll(reader)
			if err != nil || !bytes.Equal(have, data) {
				t.Errorf("%d of %d bytes arrived, or others: %v", len(have), len(data), err)
			}
			all.Wait()
		})
	}
}

func TestTryWriteAfterTheEndSendsNothing(t *testing.T) {
	client, _ := pair(t, AcceptOptions{}, DialOptions{})
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n := client.TryWrite([]byte("x")); n != 0 {
		t.Errorf("%d bytes were taken", n)
	}
}

// The rest of a frame that nobody takes must not keep Close from its end.
func TestCloseDoesNotWaitForTheRestOfAFrame(t *testing.T) {
	client, _ := pair(t, AcceptOptions{}, DialOptions{})
	for block := make([]byte, 60_000); client.TryWrite(block) > 0; {
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = client.Close()
	}()
	select {
	case <-closed:
	case <-time.After(time.Minute):
		t.Fatal("Close hangs")
	}
}
