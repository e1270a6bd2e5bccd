package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
)

const beat = 100 * time.Millisecond // between two messages of a stream

// talk is a stream over which something is said and heard.
type talk interface {
	exchange() error
	goodbye() error
}

// opener opens a stream to an endpoint through a node. The stream lives no longer than ctx.
type opener func(ctx context.Context, f *crowd, endpoint string, node int) (talk, error)

// repeat holds one connection after the other until the crowd ends. None of them may be cut.
func (f *crowd) repeat(what string, one func(node int) error) {
	for f.ctx.Err() == nil {
		n := f.cluster.pick(int(f.turn.Add(1)))
		if n < 0 {
			return
		}
		began := time.Now()
		f.tunnels.Add(1)
		f.note(failure{node: n, what: what, began: began, err: one(n)})
	}
}

// hold keeps one stream open until the crowd ends, and opens another when it is cut. Opening one may not fail.
func (f *crowd) hold(what, endpoint string, open opener) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(f.ctx))
	defer cancel()
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for f.ctx.Err() == nil {
		n := f.cluster.pick(int(f.turn.Add(1)))
		if n < 0 {
			return
		}
		x := failure{node: n, what: what, began: time.Now()}
		f.tunnels.Add(1)
		s, err := open(ctx, f, endpoint, n)
		if err != nil {
			x.err = fmt.Errorf("open: %w", err)
			f.note(x)
			continue
		}
		for said := 0; !f.halted.Load(); said++ {
			<-tick.C
			if x.err = s.exchange(); x.err == nil {
				continue
			}
			if said == 0 {
				x.err = fmt.Errorf("first message: %w", x.err)
				f.note(x)
				break
			}
			x.ended = time.Now()
			f.mu.Lock()
			f.breaks = append(f.breaks, x)
			f.mu.Unlock()
			break
		}
		if err := s.goodbye(); err != nil && x.err == nil {
			x.err = fmt.Errorf("goodbye: %w", err)
			f.note(x)
		}
	}
}

// brief says something and hears it for 3 s, and says goodbye.
func brief(s talk) error {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for range 30 {
		<-tick.C
		if err := s.exchange(); err != nil {
			return errors.Join(err, s.goodbye())
		}
	}
	return s.goodbye()
}

func (f *crowd) briefWebSocket(n int) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(f.ctx), settle)
	defer cancel()
	s, err := openWebSocket(ctx, f, f.o.Endpoints[n%len(f.o.Endpoints)], n)
	if err != nil {
		return err
	}
	return brief(s)
}

func (f *crowd) briefTCP() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(f.ctx), settle)
	defer cancel()
	s, err := openTCP(ctx, f, "", 0)
	if err != nil {
		return err
	}
	return brief(s)
}

type webSocketTalk struct {
	ctx context.Context
	ws  *websocket.Conn
}

func openWebSocket(ctx context.Context, f *crowd, endpoint string, n int) (talk, error) {
	dial, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	ws, _, err := websocket.Dial(dial, "ws://"+endpoint+".piko.test/ws", &websocket.DialOptions{HTTPClient: f.clients[n]})
	if err != nil {
		return nil, err
	}
	return webSocketTalk{ctx, ws}, nil
}

func (s webSocketTalk) exchange() error {
	ctx, cancel := context.WithTimeout(s.ctx, settle)
	defer cancel()
	if err := s.ws.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
		return err
	}
	if _, b, err := s.ws.Read(ctx); err != nil || string(b) != "hello" {
		return fmt.Errorf("%q: %w", b, err)
	}
	return nil
}

func (s webSocketTalk) goodbye() error { return s.ws.Close(websocket.StatusNormalClosure, "") }

type tcpTalk struct{ net.Conn }

func openTCP(ctx context.Context, f *crowd, _ string, _ int) (talk, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", f.o.Forward)
	if err != nil {
		return nil, err
	}
	return tcpTalk{c}, nil
}

func (s tcpTalk) exchange() error {
	if err := s.SetDeadline(time.Now().Add(settle)); err != nil {
		return err
	}
	if _, err := io.WriteString(s, "hello"); err != nil {
		return err
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(s, b); err != nil || string(b) != "hello" {
		return fmt.Errorf("%q: %w", b, err)
	}
	return nil
}

func (s tcpTalk) goodbye() error { return s.Close() }

type call struct {
	conn   *grpc.ClientConn
	stream grpc.BidiStreamingClient[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse]
	end    context.CancelFunc
}

func openCall(ctx context.Context, f *crowd, endpoint string, n int) (talk, error) {
	conn, err := grpc.NewClient("passthrough:///"+endpoint+".piko.test", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", f.cluster.nodes[n].proxy)
		}))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	stream, err := pb.NewTestServiceClient(conn).FullDuplexCall(ctx)
	if err != nil {
		cancel()
		return nil, errors.Join(err, conn.Close())
	}
	return call{conn, stream, cancel}, nil
}

func (s call) exchange() error {
	out := &pb.StreamingOutputCallRequest{Payload: &pb.Payload{Body: []byte("hello")}}
	if err := s.stream.Send(out); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	in, err := s.stream.Recv() // which tells the reason, should Send not have
	if err == nil && string(in.GetPayload().GetBody()) != "hello" {
		err = fmt.Errorf("%q came back", in.GetPayload().GetBody())
	}
	return err
}

func (s call) goodbye() error {
	s.end()
	return s.conn.Close()
}

// hashing is a service that reads all there is and answers with its hash.
func hashing(c net.Conn) {
	if hash, err := sum(c); err == nil {
		_, _ = io.WriteString(c, hash)
	}
}

// upload sends bytes over a TCP connection at an even pace and compares the hash that comes back.
func upload(address string, size int64, lasting time.Duration) error {
	c, err := net.DialTimeout("tcp", address, settle)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	hash, flood, began := sha256.New(), newFlood(), time.Now()
	const step = 1 << 20
	for sent := int64(0); sent < size; sent += step {
		pause(time.Until(began.Add(lasting * time.Duration(sent) / time.Duration(size))))
		if err := c.SetDeadline(time.Now().Add(settle)); err != nil {
			return err
		}
		if _, err := io.CopyN(io.MultiWriter(c, hash), flood, min(step, size-sent)); err != nil {
			return fmt.Errorf("after %d MiB and %s: %w", sent>>20, time.Since(began), err)
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		return fmt.Errorf("the hash, after %s: %w", time.Since(began), err)
	}
	if want := hex.EncodeToString(hash.Sum(nil)); string(answer) != want {
		return fmt.Errorf("the service got %q: want %s", answer, want)
	}
	return nil
}
