package relay

import (
	"bytes"
	"testing"
	"testing/iotest"
)

func TestBuffersGrowWhileFullAndShrink(t *testing.T) {
	tests := []struct {
		name        string
		class, n    int
		want        int
		wantResting int
	}{
		{"a little", 0, 100, 0, 0},
		{"full", 0, 4 << 10, 1, 1},
		{"full again", 1, 16 << 10, 2, 2},
		{"largest full", 3, 128 << 10, 3, 3},
		{"half", 2, 40 << 10, 2, restingClass},
		{"less than the class below", 2, 16 << 10, 1, 1},
		{"a little in the largest", 3, 1, 2, restingClass},
		{"a little at rest", 1, 1, 0, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := grown(test.class, test.n); got != test.want {
				t.Errorf("class %d after %d bytes, want %d", got, test.n, test.want)
			}
			s := &readerSource{class: test.class, r: bytes.NewReader(make([]byte, test.n))}
			if _, err := s.next(); err != nil {
				t.Fatal(err)
			}
			if s.release(); s.class != test.wantResting {
				t.Errorf("waits with class %d, want %d", s.class, test.wantResting)
			}
		})
	}
}

func TestReaderSourceHoldsNothingAtTheEnd(t *testing.T) {
	s := &readerSource{r: iotest.DataErrReader(bytes.NewReader([]byte("last")))}
	err := s.each(func(data []byte) bool {
		if string(data) != "last" {
			t.Errorf("read %q", data)
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.buf != nil {
		t.Fatal("a buffer is held after the end")
	}
}
