package e2e

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
)

const bulk = 1 << 30

// flood is a stream of bulk bytes that look random and are the same each time. No part of it is ever kept.
type flood struct {
	stream cipher.Stream
	left   int
}

func newFlood() *flood {
	block, err := aes.NewCipher(make([]byte, 16))
	if err != nil {
		panic(err) // the length of the key is right
	}
	return &flood{cipher.NewCTR(block, make([]byte, 16)), bulk} // the same each time
}

func (f *flood) Read(p []byte) (int, error) {
	if f.left == 0 {
		return 0, io.EOF
	}
	p = p[:min(len(p), f.left)]
	clear(p)
	f.stream.XORKeyStream(p, p)
	f.left -= len(p)
	return len(p), nil
}

// sum hashes all that r gives.
func sum(r io.Reader) (string, error) {
	h := sha256.New()
	_, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{r}, make([]byte, 256<<10))
	return hex.EncodeToString(h.Sum(nil)), err
}

var floodSum = sync.OnceValues(func() (string, error) { return sum(newFlood()) })

// pour writes the flood.
func pour(w io.Writer) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{newFlood()}, make([]byte, 256<<10))
	return err
}

func checkSum(t testing.TB, what, got string, err error) {
	t.Helper()
	want, wantErr := floodSum()
	if err != nil || wantErr != nil || got != want {
		t.Errorf("%s: hash %s, %v: want that of the 1 GiB sent, %s", what, got, err, want)
	}
}

func TestOneGibibyteEachWayOverHTTP(t *testing.T) {
	parallel(t)
	n := oneService(t, nodeOptions{}, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_ = pour(w)
			return
		}
		s, err := sum(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, _ = io.WriteString(w, s)
	})
	c := n.client(t)
	t.Run("download, chunked", func(t *testing.T) {
		resp, err := c.Do(request(t, http.MethodGet, at("e", "/"), nil))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		got, err := sum(resp.Body)
		checkSum(t, "client", got, err)
	})
	t.Run("upload, of known length", func(t *testing.T) {
		r := request(t, http.MethodPost, at("e", "/"), newFlood())
		r.ContentLength = bulk
		a := do(t, c, r)
		checkSum(t, "service", a.body, nil)
	})
	if got := n.rss(t); got > 128<<20 {
		t.Errorf("pikod holds %d MiB afterwards: want it to have passed the bytes on, not kept them", got>>20)
	}
}

func TestLargeBodiesBothWaysAtOnce(t *testing.T) {
	parallel(t)
	const size = 64 << 20
	n := oneService(t, nodeOptions{}, echoBody)
	want, err := sum(io.LimitReader(newFlood(), size))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range n.ways(t) {
		resp, err := c.Do(request(t, http.MethodPost, at("e", "/"), io.LimitReader(newFlood(), size)))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := sum(resp.Body); err != nil || got != want {
			t.Errorf("%s: hash %s, %v: want that of the 64 MiB sent, %s", name, got, err, want)
		}
		_ = resp.Body.Close()
	}
}

func TestOneGibibyteEachWayOverTCP(t *testing.T) {
	parallel(t)
	n := startNode(t, nodeOptions{})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "bulk", Protocol: "tcp", Addr: serveTCP(t, func(c *net.TCPConn) {
		order := make([]byte, 1)
		if _, err := io.ReadFull(c, order); err != nil {
			return
		}
		if order[0] == 'd' {
			_ = pour(c)
			return
		}
		if s, err := sum(c); err == nil {
			_, _ = io.WriteString(c, s)
		}
	})})
	address, forward := startForward(t, n, "bulk")
	t.Run("download", func(t *testing.T) {
		c := connect(t, address)
		mustWrite(t, c, "d")
		got, err := sum(c)
		checkSum(t, "client", got, err)
	})
	t.Run("upload", func(t *testing.T) {
		c := connect(t, address)
		mustWrite(t, c, "u")
		if err := pour(c); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		checkSum(t, "service", string(got), err)
	})
	for _, p := range []*process{n.process, forward} {
		if got := p.rss(t); got > 128<<20 {
			t.Errorf("%s holds %d MiB afterwards: want it to have passed the bytes on, not kept them", p.name, got>>20)
		}
	}
}

func TestASlowReaderHoldsUpItsSenderAndNobodyElse(t *testing.T) {
	t.Parallel()
	n := oneService(t, nodeOptions{}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/small" {
			_, _ = io.WriteString(w, "small")
			return
		}
		_ = pour(w)
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 4 {
		resp, err := n.client(t).Do(request(t, http.MethodGet, at("e", "/large"), nil).WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		// Some of it is read, the rest is left to pile up.
		if _, err := io.CopyN(io.Discard, resp.Body, 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	c := n.client(t)
	for range 200 {
		if a := get(t, c, at("e", "/small")); a.body != "small" {
			t.Fatalf("status %d %q: want the small answer", a.StatusCode, a.body)
		}
	}
	if got := n.rss(t); got > 128<<20 {
		t.Errorf("pikod holds %d MiB for four readers that stand still: want it bounded", got>>20)
	}
}
