package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// grpcService answers the calls of gRPC's own interoperability tests.
type grpcService struct {
	pb.UnimplementedTestServiceServer
	cancelled chan struct{} // receives when a stream was cancelled from outside
}

// mark repeats the caller's metadata as header and trailer.
func mark(ctx context.Context, set func(header, trailer metadata.MD) error) error {
	in, _ := metadata.FromIncomingContext(ctx)
	for key := range in {
		if len(key) > 7 && key[:7] == "x-piko-" {
			return status.Errorf(codes.Internal, "internal field %s reached the service", key)
		}
	}
	return set(metadata.Pairs("x-header", first(in, "x-say")),
		metadata.Pairs("x-trailer", first(in, "x-say"), "x-trailer-bin", "\x00\x01\xff"))
}

func first(md metadata.MD, key string) string {
	if v := md.Get(key); len(v) > 0 {
		return v[0]
	}
	return ""
}

// wanted is the error that a caller asked for, if any.
func wanted(s *pb.EchoStatus) error {
	return status.Error(codes.Code(uint32(max(0, s.GetCode()))), s.GetMessage())
}

func (s *grpcService) UnaryCall(ctx context.Context, in *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	err := mark(ctx, func(header, trailer metadata.MD) error {
		return errors.Join(grpc.SetHeader(ctx, header), grpc.SetTrailer(ctx, trailer))
	})
	if err != nil {
		return nil, err
	}
	if err := wanted(in.GetResponseStatus()); err != nil {
		return nil, err
	}
	return &pb.SimpleResponse{Payload: in.GetPayload()}, nil
}

func (s *grpcService) StreamingOutputCall(in *pb.StreamingOutputCallRequest,
	out grpc.ServerStreamingServer[pb.StreamingOutputCallResponse]) error {
	for _, p := range in.GetResponseParameters() {
		body := bytes.Repeat([]byte{'d'}, int(p.GetSize()))
		if err := out.Send(&pb.StreamingOutputCallResponse{Payload: &pb.Payload{Body: body}}); err != nil {
			return err
		}
	}
	return wanted(in.GetResponseStatus())
}

func (s *grpcService) StreamingInputCall(
	in grpc.ClientStreamingServer[pb.StreamingInputCallRequest, pb.StreamingInputCallResponse]) error {
	sum := 0
	for {
		m, err := in.Recv()
		if errors.Is(err, io.EOF) {
			return in.SendAndClose(&pb.StreamingInputCallResponse{AggregatedPayloadSize: int32(sum)})
		}
		if err != nil {
			return err
		}
		sum += len(m.GetPayload().GetBody())
	}
}

func (s *grpcService) FullDuplexCall(
	both grpc.BidiStreamingServer[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse]) error {
	err := mark(both.Context(), func(header, trailer metadata.MD) error {
		both.SetTrailer(trailer)
		return both.SendHeader(header)
	})
	if err != nil {
		return err
	}
	for {
		m, err := both.Recv()
		if errors.Is(err, io.EOF) {
			return status.Error(codes.DataLoss, "all read")
		}
		if err != nil {
			if both.Context().Err() != nil {
				s.cancelled <- struct{}{}
			}
			return err
		}
		if err := both.Send(&pb.StreamingOutputCallResponse{Payload: m.GetPayload()}); err != nil {
			return err
		}
	}
}

// startGRPC gives clients of a gRPC service behind node and agent: addressed by authority, by metadata, and over TLS.
func startGRPC(t *testing.T) (clients map[string]pb.TestServiceClient, s *grpcService, n *node) {
	t.Helper()
	s = &grpcService{cancelled: make(chan struct{}, 1)}
	address := serveGRPC(t, s)
	ca := newAuthority(t)
	cert, key := ca.issue(t, "g.piko.test")
	n = startNode(t, nodeOptions{Proxy: `endpoint_wait = "0s"`})
	secure := startNode(t, nodeOptions{Proxy: fmt.Sprintf("[proxy.tls]\ncert = %q\nkey = %q", cert, key)})
	for _, node := range []*node{n, secure} {
		startAgent(t, node, agentOptions{}, offer{Endpoint: "g", Addr: address})
	}
	dial := func(n *node, o ...grpc.DialOption) pb.TestServiceClient {
		c, err := grpc.NewClient("passthrough:///"+n.proxy, append(o, grpc.WithNoProxy())...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return pb.NewTestServiceClient(c)
	}
	plain := grpc.WithTransportCredentials(insecure.NewCredentials())
	named := func(ctx context.Context) context.Context {
		return metadata.AppendToOutgoingContext(ctx, "x-piko-endpoint", "g")
	}
	clients = map[string]pb.TestServiceClient{
		"authority": dial(n, plain, grpc.WithAuthority("g.piko.test")),
		"metadata": dial(n, plain,
			grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
				next grpc.UnaryInvoker, o ...grpc.CallOption) error {
				return next(named(ctx), method, req, reply, cc, o...)
			}),
			grpc.WithStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string,
				next grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
				return next(named(ctx), d, cc, method, o...)
			})),
		"TLS": dial(secure, grpc.WithTransportCredentials(credentials.NewTLS(
			&tls.Config{RootCAs: ca.pool, ServerName: "g.piko.test"}))),
	}
	return clients, s, n
}

func TestGRPC(t *testing.T) {
	parallel(t)
	clients, service, _ := startGRPC(t)
	for name, c := range clients {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "x-say", "hi"), patience)
			defer cancel()
			t.Run("unary, with header and trailer", func(t *testing.T) { grpcUnary(ctx, t, c) })
			t.Run("an error keeps its code, text and trailer", func(t *testing.T) { grpcError(ctx, t, c) })
			t.Run("server streams", func(t *testing.T) { grpcServerStream(ctx, t, c) })
			t.Run("client streams", func(t *testing.T) { grpcClientStream(ctx, t, c) })
			t.Run("both stream, message by message", func(t *testing.T) { grpcDuplex(ctx, t, c) })
			t.Run("cancelled by the client", func(t *testing.T) { grpcCancel(ctx, t, c, service) })
			t.Run("deadline of the client", func(t *testing.T) { grpcDeadline(ctx, t, c, service) })
		})
	}
}

func grpcUnary(ctx context.Context, t *testing.T, c pb.TestServiceClient) {
	for _, size := range []int{0, 1, 100_000, 3 << 20} {
		var header, trailer metadata.MD
		body := bytes.Repeat([]byte{'u'}, size)
		out, err := c.UnaryCall(ctx, &pb.SimpleRequest{Payload: &pb.Payload{Body: body}},
			grpc.Header(&header), grpc.Trailer(&trailer))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(out.GetPayload().GetBody(), body) {
			t.Errorf("%d bytes came back: want the %d sent", len(out.GetPayload().GetBody()), size)
		}
		if first(header, "x-header") != "hi" || first(trailer, "x-trailer") != "hi" ||
			first(trailer, "x-trailer-bin") != "\x00\x01\xff" {
			t.Errorf("header %v, trailer %v: want what the service set", header, trailer)
		}
	}
}

func grpcError(ctx context.Context, t *testing.T, c pb.TestServiceClient) {
	var trailer metadata.MD
	_, err := c.UnaryCall(ctx, &pb.SimpleRequest{ResponseStatus: &pb.EchoStatus{
		Code: int32(codes.ResourceExhausted), Message: "too much; Zürich 100%"}}, grpc.Trailer(&trailer))
	got := status.Convert(err)
	if got.Code() != codes.ResourceExhausted || got.Message() != "too much; Zürich 100%" ||
		first(trailer, "x-trailer") != "hi" {
		t.Errorf("error %v, trailer %v: want what the service gave", err, trailer)
	}
	if _, err := c.EmptyCall(ctx, &pb.Empty{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a call that is not there: %v: want unimplemented", err)
	}
}

func grpcServerStream(ctx context.Context, t *testing.T, c pb.TestServiceClient) {
	in := &pb.StreamingOutputCallRequest{ResponseStatus: &pb.EchoStatus{Code: int32(codes.Aborted), Message: "end"}}
	for range 500 {
		in.ResponseParameters = append(in.ResponseParameters, &pb.ResponseParameters{Size: 10_000})
	}
	stream, err := c.StreamingOutputCall(ctx, in)
	if err != nil {
		t.Fatal(err)
	}
	messages := 0
	for {
		m, err := stream.Recv()
		if err != nil {
			if status.Code(err) != codes.Aborted {
				t.Errorf("end: %v: want the service's aborted", err)
			}
			break
		}
		if len(m.GetPayload().GetBody()) == 10_000 {
			messages++
		}
	}
	if messages != 500 {
		t.Errorf("%d messages: want 500", messages)
	}
}

func grpcClientStream(ctx context.Context, t *testing.T, c pb.TestServiceClient) {
	stream, err := c.StreamingInputCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 300 {
		m := &pb.StreamingInputCallRequest{Payload: &pb.Payload{Body: make([]byte, 10_000)}}
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := stream.CloseAndRecv()
	if err != nil || sum.GetAggregatedPayloadSize() != 3_000_000 {
		t.Errorf("service counted %d bytes, %v: want 3000000", sum.GetAggregatedPayloadSize(), err)
	}
}

func grpcDuplex(ctx context.Context, t *testing.T, c pb.TestServiceClient) {
	stream, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if header, err := stream.Header(); err != nil || first(header, "x-header") != "hi" {
		t.Fatalf("header %v, %v: want it before any message", header, err)
	}
	for i := range 200 {
		body := []byte(fmt.Sprint("message ", i))
		if err := stream.Send(&pb.StreamingOutputCallRequest{Payload: &pb.Payload{Body: body}}); err != nil {
			t.Fatal(err)
		}
		m, err := stream.Recv()
		if err != nil || !bytes.Equal(m.GetPayload().GetBody(), body) {
			t.Fatalf("message %d: %q, %v: want it back", i, m.GetPayload().GetBody(), err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.DataLoss {
		t.Errorf("end: %v: want the service's data loss", err)
	}
	if got := stream.Trailer(); first(got, "x-trailer") != "hi" {
		t.Errorf("trailer %v: want what the service set", got)
	}
}

func grpcCancel(ctx context.Context, t *testing.T, c pb.TestServiceClient, s *grpcService) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	cancel()
	wait(t, "the service sees the cancellation", settle, s.cancelled)
	if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("client sees %v: want cancelled", err)
	}
}

func grpcDeadline(ctx context.Context, t *testing.T, c pb.TestServiceClient, s *grpcService) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second) // the call has to reach the service within it
	defer cancel()
	stream, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil { // the service has the call
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("client sees %v: want deadline exceeded", err)
	}
	wait(t, "the service sees the end", settle, s.cancelled)
}

func TestGRPCToAServiceOverTLS(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(ca.server(t, "internal.test"))))
	pb.RegisterTestServiceServer(server, &grpcService{cancelled: make(chan struct{}, 1)})
	l := listen(t)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("gRPC service: %v", err)
		}
	})
	n := startNode(t, nodeOptions{})
	tls := fmt.Sprintf("[listeners.tls]\nca = %q\nserver_name = \"internal.test\"", ca.file)
	startAgent(t, n, agentOptions{}, offer{Endpoint: "g", Addr: "https://" + l.Addr().String(), More: tls},
		offer{Endpoint: "read", Addr: "https://" + l.Addr().String(), More: "access_log = true\n" + tls})
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "x-say", "hi"), patience)
	defer cancel()
	for _, endpoint := range []string{"g", "read"} {
		c, err := grpc.NewClient("passthrough:///"+n.proxy, grpc.WithNoProxy(), grpc.WithAuthority(endpoint+".piko.test"),
			grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		t.Run(endpoint+" unary", func(t *testing.T) { grpcUnary(ctx, t, pb.NewTestServiceClient(c)) })
		t.Run(endpoint+" both stream", func(t *testing.T) { grpcDuplex(ctx, t, pb.NewTestServiceClient(c)) })
		t.Run(endpoint+" error", func(t *testing.T) { grpcError(ctx, t, pb.NewTestServiceClient(c)) })
	}
}

func TestGRPCWithoutAServiceIsUnavailable(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Proxy: `endpoint_wait = "0s"`})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "dead", Addr: freeAddress(t)})
	for _, endpoint := range []string{"absent", "dead"} {
		c, err := grpc.NewClient("passthrough:///"+n.proxy, grpc.WithNoProxy(),
			grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(endpoint+".piko.test"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = pb.NewTestServiceClient(c).UnaryCall(t.Context(), &pb.SimpleRequest{})
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%s endpoint: %v: want unavailable", endpoint, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}
