package relay

import (
	"io"
	"net"
	"testing"
)

func BenchmarkBulk(b *testing.B) {
	for name, wrap := range map[string]func(net.Conn) net.Conn{"sockets": bare, "streams": wrapped} {
		b.Run(name, func(b *testing.B) {
			left, right, done := start(b.Context(), b, Options{}, wrap)
			chunk := make([]byte, 256<<10)
			b.SetBytes(int64(len(chunk)))
			b.ReportAllocs()
			go func() {
				for range b.N {
					if _, err := left.Write(chunk); err != nil {
						break
					}
				}
				_ = left.CloseWrite()
			}()
			if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{right}, make([]byte, 256<<10)); err != nil {
				b.Fatal(err)
			}
			_ = right.Close()
			<-done
		})
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	for name, wrap := range map[string]func(net.Conn) net.Conn{"sockets": bare, "streams": wrapped} {
		b.Run(name, func(b *testing.B) {
			left, right, done := start(b.Context(), b, Options{}, wrap)
			p := make([]byte, 300)
			b.ReportAllocs()
			for b.Loop() {
				for _, way := range [][2]net.Conn{{left, right}, {right, left}} {
					if _, err := way[0].Write(p); err != nil {
						b.Fatal(err)
					}
					if _, err := io.ReadFull(way[1], p); err != nil {
						b.Fatal(err)
					}
				}
			}
			_ = left.Close()
			_ = right.Close()
			<-done
		})
	}
}
