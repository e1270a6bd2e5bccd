package piko_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/pikoproxy/piko"
	"github.com/pikoproxy/piko/internal/pikotest/fakenode"
)

// Offer an HTTP service that has no port.
func ExampleClient_Listen() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	var client piko.Client // a node on this host
	ln, err := client.Listen(ctx, "my-endpoint")
	if err != nil {
		log.Fatal(err)
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s\n", r.RemoteAddr)
	})
	log.Fatal(http.Serve(ln, handler))
}

// Reach an endpoint that carries any bytes.
func ExampleClient_Dial() {
	client := piko.Client{ProxyURL: "https://piko.example.com", Token: os.Getenv("PIKO_TOKEN")}
	conn, err := client.Dial(context.Background(), "my-redis")
	switch {
	case errors.Is(err, piko.ErrNoUpstream):
		log.Fatal("no agent offers it now: ", err)
	case errors.Is(err, piko.ErrUnauthorized):
		log.Fatal("the token is not good for it: ", err)
	case err != nil:
		log.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "PING\r\n")
	conn.CloseWrite() // no more from here; the answer still comes
	io.Copy(os.Stdout, conn)
}

// Offer a service that listens on a local address, with a token that is renewed by replacing a file.
func ExampleClient_ListenAndForward() {
	client := piko.Client{
		URL:         "https://agents.piko.example.com",
		TokenSource: piko.TokenFile("/run/secrets/piko-token"),
		Logger:      slog.Default(),
	}
	err := client.ListenAndForward(context.Background(), "my-redis", "localhost:6379", piko.WithProtocol(piko.TCP))
	log.Fatal(err)
}

// Refuse a connection before the client has sent anything, so that the cluster brings it to another agent.
func ExampleListener_AcceptIncoming() {
	var client piko.Client
	ln, err := client.Listen(context.Background(), "my-endpoint", piko.WithProtocol(piko.TCP))
	if err != nil {
		log.Fatal(err)
	}
	for {
		in, err := ln.AcceptIncoming()
		if err != nil {
			return // closed
		}
		service, err := net.Dial("tcp", "localhost:6379")
		if err != nil {
			_ = in.Refuse(piko.CodeServiceUnreachable, "redis is down")
			continue
		}
		conn, err := in.Accept()
		if err != nil {
			_ = service.Close() // the client has left
			continue
		}
		go relay(conn, service)
	}
}

func relay(a, b net.Conn) {
	go io.Copy(a, b)
	io.Copy(b, a)
}

// Stop without failing a request.
func ExampleClient_Shutdown() {
	var client piko.Client
	ln, err := client.Listen(context.Background(), "my-endpoint")
	if err != nil {
		log.Fatal(err)
	}
	go http.Serve(ln, http.NotFoundHandler())

	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := client.Shutdown(ctx); err != nil {
		log.Print("requests were cut: ", err)
	}
}

// Everything in one process: an agent, and a client that reaches it.
func Example() {
	node := fakenode.New(context.Background(), "n1") // a stand-in for pikod
	defer node.Kill()

	client := piko.Client{URL: node.URL(), ProxyURL: node.URL()}
	defer client.Close()
	ln, err := client.Listen(context.Background(), "greeter", piko.WithProtocol(piko.TCP))
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		name, _ := io.ReadAll(conn)
		fmt.Fprintf(conn, "hello, %s", name)
		conn.Close()
	}()

	conn, err := client.Dial(context.Background(), "greeter")
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "world")
	conn.CloseWrite()
	answer, err := io.ReadAll(conn)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(answer))
	// Output: hello, world
}
