package e2e

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
)

// TestClusterCarriesEveryProtocol has agents on one node and clients on the two others.
func TestClusterCarriesEveryProtocol(t *testing.T) {
	parallel(t)
	c := startCluster(t, 3, "")
	s := &grpcService{cancelled: make(chan struct{}, 1)}
	startAgent(t, c.nodes[0], agentOptions{Connect: "connections = 1"},
		offer{Endpoint: "g", Addr: serveGRPC(t, s)},
		offer{Endpoint: "e", Addr: serve(t, func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/ws":
				echoWebSocket(w, r)
			case "/echo":
				w.Header().Set("Trailer", "X-End")
				echoBody(w, r)
				w.Header().Set("X-End", "yes")
			default:
				reply(w, "%s %s", r.Proto, r.Header.Get("X-Forwarded-For"))
			}
		})},
		offer{Endpoint: "tcp", Addr: serveTCP(t, echo), Protocol: "tcp"})
	for _, e := range []string{"g", "e", "tcp"} {
		c.nodes[0].awaitEndpoint(t, e, 1)
	}
	for i, n := range c.nodes[1:] {
		t.Run([]string{"through n2", "through n3"}[i], func(t *testing.T) {
			for version, client := range n.versions(t) {
				t.Run(version, func(t *testing.T) { acrossHTTP(t, client) })
			}
			t.Run("gRPC", func(t *testing.T) { acrossGRPC(t, n, s) })
			t.Run("WebSocket", func(t *testing.T) { acrossWebSocket(t, n) })
			t.Run("TCP with half-close", func(t *testing.T) {
				address, _ := startForward(t, n, "tcp")
				conn := connect(t, address)
				mustWrite(t, conn, "hello")
				if err := conn.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if b, err := io.ReadAll(conn); err != nil || string(b) != "hello" {
					t.Errorf("%q, %v came back", b, err)
				}
			})
		})
	}
}

func acrossHTTP(t *testing.T, client *http.Client) {
	if a := get(t, client, at("e", "/")); a.body != "HTTP/1.1 127.0.0.1" {
		t.Errorf("the service saw %q", a.body)
	}
	body := strings.Repeat("0123456789abcdef", 1<<16)
	r := request(t, http.MethodPost, at("e", "/echo"), io.MultiReader(strings.NewReader(body))) // of no known length
	a := do(t, client, r)
	if a.body != body || a.Trailer.Get("X-End") != "yes" {
		t.Errorf("%d of %d bytes came back, trailer %v", len(a.body), len(body), a.Trailer)
	}
}

func acrossGRPC(t *testing.T, n *node, s *grpcService) {
	conn, err := grpc.NewClient("passthrough:///"+n.proxy, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("g.piko.test"), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	client := pb.NewTestServiceClient(conn)
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "x-say", "hi"), patience)
	defer cancel()
	t.Run("unary, with header and trailer", func(t *testing.T) { grpcUnary(ctx, t, client) })
	t.Run("an error keeps its code, text and trailer", func(t *testing.T) { grpcError(ctx, t, client) })
	t.Run("server streams", func(t *testing.T) { grpcServerStream(ctx, t, client) })
	t.Run("client streams", func(t *testing.T) { grpcClientStream(ctx, t, client) })
	t.Run("both stream, message by message", func(t *testing.T) { grpcDuplex(ctx, t, client) })
	t.Run("cancelled by the client", func(t *testing.T) { grpcCancel(ctx, t, client, s) })
}

func acrossWebSocket(t *testing.T, n *node) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	f := &crowd{cluster: &cluster{nodes: []*node{n}}, clients: []*http.Client{n.client(t)}}
	ws, err := openWebSocket(ctx, f, "e", 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := ws.exchange(); err != nil {
			t.Error(err)
		}
	}
	if err := ws.goodbye(); err != nil {
		t.Error(err)
	}
}

// serveGRPC runs a gRPC service and gives its address.
func serveGRPC(t testing.TB, s *grpcService) string {
	t.Helper()
	var l net.Listener = listen(t)
	server := grpc.NewServer()
	pb.RegisterTestServiceServer(server, s)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("gRPC service: %v", err)
		}
	})
	return l.Addr().String()
}
