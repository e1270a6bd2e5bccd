package websocket

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestWriteToGivesEverythingUpToTheEnd(t *testing.T) {
	client, server := pair(t, AcceptOptions{}, DialOptions{})
	limit(t, client, server)
	sent := random(300 << 10)
	go func() {
		_, _ = server.Write(sent) // what does not arrive is missed below
		_ = server.CloseWrite()
	}()
	// Small reads leave something in a buffer of ours, which comes before what is in the socket.
	var got bytes.Buffer
	for client.rest == nil {
		if _, err := io.CopyN(&got, client, 100); err != nil {
			t.Fatal(err)
		}
	}
	n, err := client.WriteTo(&got)
	if err != nil || !bytes.Equal(got.Bytes(), sent) {
		t.Errorf("%d of %d bytes came, or others, %v", got.Len(), len(sent), err)
	}
	if client.buf != nil {
		t.Error("a buffer is still held")
	}
	if n == 0 || n > int64(len(sent)) {
		t.Errorf("WriteTo counts %d bytes", n)
	}
}

// unwilling is a writer that has had enough.
type unwilling struct{ err error }

func (w unwilling) Write(p []byte) (int, error) { return len(p) / 2, w.err }

func TestWriteToTellsWhatWentWrong(t *testing.T) {
	client, server := pair(t, AcceptOptions{}, DialOptions{})
	limit(t, client, server)
	if _, err := server.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	// Also when it looks like the end of what is read.
	if n, err := client.WriteTo(unwilling{io.EOF}); n != 2 || !errors.Is(err, io.EOF) {
		t.Errorf("a writer that fails: %d bytes, %v", n, err)
	}
	if err := server.CloseWith(closePolicy, "no more"); err != nil {
		t.Fatal(err)
	}
	fault, ok := errors.AsType[*CloseError](func() error { _, err := client.WriteTo(&strings.Builder{}); return err }())
	if !ok || fault.Code != closePolicy {
		t.Errorf("a peer that ends with a fault: %v", fault)
	}
}
