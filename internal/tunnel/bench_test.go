//go:build unix

package tunnel

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
)

const (
	requestSize = 300
	answerSize  = 500
)

// serveCalls answers requests on a stream until it ends.
func serveCalls(st net.Conn) {
	in, out := make([]byte, requestSize), make([]byte, answerSize)
	for {
		if _, err := io.ReadFull(st, in); err != nil {
			st.Close()
			return
		}
		if _, err := st.Write(out); err != nil {
			return
		}
	}
}

// call is one request and its answer.
func call(st net.Conn, out, in []byte) error {
	if _, err := st.Write(out); err != nil {
		return err
	}
	_, err := io.ReadFull(st, in)
	return err
}

// opener opens streams to a far end that runs serve on each.
type opener func(b *testing.B, serve func(net.Conn)) func() (net.Conn, error)

func overNative(b *testing.B, serve func(net.Conn)) func() (net.Conn, error) {
	s, a := pair(b)
	go func() {
		for {
			in, err := a.Accept(b.Context())
			if err != nil {
				return
			}
			go func() {
				if st, err := in.Accept(); err == nil {
					serve(st)
				}
			}()
		}
	}()
	return func() (net.Conn, error) { return s.Open(b.Context(), Header{Endpoint: "e", Protocol: ProtocolTCP}) }
}

func overClassic(b *testing.B, serve func(net.Conn)) func() (net.Conn, error) {
	n := newNode(b, NodeOptions{})
	s, agent, _ := n.classicAgent(b)
	go acceptAll(agent, serve)
	return func() (net.Conn, error) { return s.Open(b.Context(), Header{}) }
}

// overPlainYamux is what others build on: yamux directly on TCP.
func overPlainYamux(b *testing.B, serve func(net.Conn)) func() (net.Conn, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	one, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	two, err := listener.Accept()
	if err != nil {
		b.Fatal(err)
	}
	config := yamux.DefaultConfig()
	config.LogOutput = io.Discard
	near, _ := yamux.Client(one, config)
	far, _ := yamux.Server(two, config)
	b.Cleanup(func() { near.Close(); far.Close() })
	go acceptAll(far, serve)
	return near.Open
}

func acceptAll(ys *yamux.Session, serve func(net.Conn)) {
	for {
		st, err := ys.Accept()
		if err != nil {
			return
		}
		go serve(st)
	}
}

func openers() map[string]opener {
	return map[string]opener{"native": overNative, "classic": overClassic, "yamux": overPlainYamux}
}

// cpu is the processor time used so far, in nanoseconds.
func cpu() int64 {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}

// measured runs work b.N times in parallel and reports the processor time of each, both ends together.
func measured(b *testing.B, parallel int, work func(worker int) error) {
	b.ReportAllocs()
	start := cpu()
	b.ResetTimer()
	var todo sync.WaitGroup
	for w := range parallel {
		share := b.N / parallel
		if w < b.N%parallel {
			share++
		}
		todo.Go(func() {
			for range share {
				if err := work(w); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	todo.Wait()
	b.StopTimer()
	b.ReportMetric(float64(cpu()-start)/float64(b.N), "cpu-ns/op")
}

func BenchmarkCall(b *testing.B) {
	for name, over := range openers() {
		for _, parallel := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%s/c=%d", name, parallel), func(b *testing.B) {
				open := over(b, serveCalls)
				streams := make([]net.Conn, parallel)
				for i := range streams {
					st, err := open()
					if err != nil {
						b.Fatal(err)
					}
					streams[i] = st
					call(st, make([]byte, requestSize), make([]byte, answerSize))
				}
				out, in := make([]byte, requestSize), make([][answerSize]byte, parallel)
				measured(b, parallel, func(w int) error { return call(streams[w], out, in[w][:]) })
			})
		}
	}
}

func BenchmarkNewStream(b *testing.B) {
	for name, over := range openers() {
		for _, parallel := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/c=%d", name, parallel), func(b *testing.B) {
				open := over(b, serveCalls)
				out, in := make([]byte, requestSize), make([][answerSize]byte, parallel)
				measured(b, parallel, func(w int) error {
					st, err := open()
					if err != nil {
						return err
					}
					defer st.Close()
					return call(st, out, in[w][:])
				})
			})
		}
	}
}

func BenchmarkBulk(b *testing.B) {
	for name, over := range openers() {
		for _, chunk := range []int{16 << 10, 32 << 10, 256 << 10} {
			b.Run(fmt.Sprintf("%s/%dK", name, chunk>>10), func(b *testing.B) {
				received := make(chan int64, 1)
				open := over(b, func(st net.Conn) {
					buf := make([]byte, 64<<10)
					n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{st}, buf)
					st.Close()
					received <- n
				})
				st, err := open()
				if err != nil {
					b.Fatal(err)
				}
				out := make([]byte, chunk)
				b.SetBytes(int64(chunk))
				measured(b, 1, func(int) error {
					_, err := st.Write(out)
					return err
				})
				b.StartTimer()
				if c, ok := st.(interface{ CloseWrite() error }); ok {
					c.CloseWrite()
				} else {
					st.Close()
				}
				if n := <-received; n != int64(b.N)*int64(chunk) {
					b.Fatalf("%d bytes arrived", n)
				}
				st.Close()
			})
		}
	}
}

// BenchmarkCallBesideBulk measures small calls on a session whose other streams are busy in both directions.
func BenchmarkCallBesideBulk(b *testing.B) {
	for name, over := range openers() {
		b.Run(name, func(b *testing.B) {
			open := over(b, func(st net.Conn) {
				kind := make([]byte, 1)
				io.ReadFull(st, kind)
				switch kind[0] {
				case 'c':
					serveCalls(st)
				case 'd':
					io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{st}, make([]byte, 64<<10))
				case 'u':
					for chunk := make([]byte, 32<<10); ; {
						if _, err := st.Write(chunk); err != nil {
							return
						}
					}
				}
			})
			conns := make(map[byte]net.Conn)
			for _, kind := range []byte("cdu") {
				st, err := open()
				if err != nil {
					b.Fatal(err)
				}
				st.Write([]byte{kind})
				conns[kind] = st
			}
			go func() {
				for chunk := make([]byte, 32<<10); ; {
					if _, err := conns['d'].Write(chunk); err != nil {
						return
					}
				}
			}()
			go io.Copy(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conns['u']})
			out, in := make([]byte, requestSize), make([]byte, answerSize)
			times := make([]time.Duration, 0, b.N)
			b.ResetTimer()
			for range b.N {
				start := time.Now()
				if err := call(conns['c'], out, in); err != nil {
					b.Fatal(err)
				}
				times = append(times, time.Since(start))
			}
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-us")
			for _, st := range conns {
				st.Close()
			}
		})
	}
}

// BenchmarkIdleSession reports what an idle classic session costs in the node, without the kernel's part.
func BenchmarkIdleSession(b *testing.B) {
	n := newNode(b, NodeOptions{})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range b.N {
		dialRaw(b, n.URL, PathClassic+"/e", "").answerPing(b)
		n.session(b)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(b.N), "heap-B/op")
	b.ReportMetric(float64(int64(after.StackInuse)-int64(before.StackInuse))/float64(b.N), "stack-B/op")
}
