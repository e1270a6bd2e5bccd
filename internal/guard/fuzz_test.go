package guard

import (
	"bufio"
	"bytes"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"
)

func addSeeds(f *testing.F) {
	f.Helper()
	for i, raw := range corpus(f) {
		if len(raw) < 1024 {
			f.Add(raw, uint64(i))
		}
	}
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.0\r\n\r\n"), uint64(1))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcHEAD /"), uint64(2))
	f.Add([]byte(preface+"rest"), uint64(3))
	f.Add([]byte("GET http://[::ffff:1.2.3.4]:80/ HTTP/1.1\r\nHost: a\r\n\r\n"), uint64(4))
}

// However the bytes arrive and are asked for, the verdict and what passes are the same.
func FuzzSplit(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, data []byte, seed uint64) {
		if len(data) > aheadLimit {
			return // how much may follow an upgrade depends on when it comes
		}
		want, r, _ := readThrough(t, data, whole, 4096)
		random := rand.New(rand.NewPCG(seed, 0))
		cut := func(left int) int { return 1 + random.IntN(min(left, 64)) }
		for _, room := range []int{1, 3, 600, 4096} {
			for _, cut := range []func(int) int{whole, single, cut} {
				if got, gotR, _ := readThrough(t, data, cut, room); got != want || gotR != r {
					t.Fatalf("whole: %q %v; in pieces, read by %d: %q %v", want, r, room, got, gotR)
				}
			}
		}
	})
}

// What passes, net/http takes for the same requests, each with the same end, and has nothing to object to.
func FuzzNetHTTP(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, data []byte, _ uint64) {
		passed, r, ends := readThrough(t, data, single, 1)
		if bytes.HasPrefix([]byte(passed), []byte(preface)) {
			return
		}
		if r == 0 && len(ends) == 0 && len(passed) > 0 && bytes.Contains([]byte(passed), []byte("HTTP/1.1\r\n\r\n")) {
			t.Fatalf("%q passed without an end", passed)
		}
		src := bytes.NewReader([]byte(passed))
		br := bufio.NewReader(src)
		for _, end := range ends {
			req, err := http.ReadRequest(br)
			if err != nil {
				t.Fatalf("%q: net/http refuses what has passed: %v", passed, err)
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				t.Fatalf("%q: the body of a request that has passed: %v", passed, err)
			}
			if at := len(passed) - src.Len() - br.Buffered(); at != end {
				t.Fatalf("%q: net/http ends a request at %d, the guard one of %v", passed, at, ends)
			}
			if req.RequestURI == Target {
				t.Fatalf("%q: a client's request for the refusal's target has passed", passed)
			}
		}
		if r != 0 {
			return
		}
		if req, err := http.ReadRequest(br); err == nil {
			if _, err := io.Copy(io.Discard, req.Body); err == nil {
				t.Fatalf("%q: net/http sees a whole request behind the last of %v", passed, ends)
			}
		}
	})
}

// The guard never lets net/http see more than it was sent, beside the refusal itself.
func FuzzOutput(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, data []byte, _ uint64) {
		passed, r, _ := readThrough(t, data, whole, 4096)
		if r != 0 {
			for _, told := range []string{refusedHead, refusedHeadHead, refusedTrailer, refusedChunk} {
				if rest, found := bytes.CutSuffix([]byte(passed), []byte(told)); found {
					passed = string(rest)
					break
				}
			}
		}
		for rest := data; len(passed) > 0; passed = passed[1:] {
			i := slices.Index(rest, passed[0])
			if i < 0 {
				t.Fatalf("%q is not part of what was sent", passed)
			}
			rest = rest[i+1:]
		}
	})
}
