package relay

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

func TestIdleRelayIsAborted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left, a := net.Pipe()
		right, b := net.Pipe()
		begun := time.Now()
		done := make(chan error, 1)
		go func() {
			_, err := Relay(t.Context(), a, b, Options{Idle: time.Minute})
			done <- err
		}()
		if err := <-done; !errors.Is(err, ErrIdle) {
			t.Fatalf("relay ended with %v", err)
		}
		if took := time.Since(begun); took < time.Minute || took > time.Minute*5/4 {
			t.Fatalf("idle limit of 1m took %v", took)
		}
		for _, far := range []net.Conn{left, right} {
			if _, err := far.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Fatalf("far side is not closed: %v", err)
			}
		}
	})
}

func TestMovementInOneDirectionKeepsARelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left, a := net.Pipe()
		right, b := net.Pipe()
		done := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			_, err := Relay(ctx, a, b, Options{Idle: time.Minute})
			done <- err
		}()
		every := time.NewTicker(50 * time.Second)
		defer every.Stop()
		for range 20 {
			<-every.C
			if _, err := left.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := right.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatalf("relay ended with %v", err)
		}
	})
}

func TestSideWithoutHalfCloseIsClosedWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left, a := net.Pipe()
		right, b := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = Relay(t.Context(), a, b, Options{}) // whether the other direction was cut short is not known
		}()
		if err := left.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := right.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("far side was not closed: %v", err)
		}
		<-done
	})
}

// tlsPair returns both ends of a TLS connection over TCP.
func tlsPair(t *testing.T) (client, server *tls.Conn) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	d, a := tcpPair(t)
	server = tls.Server(a, &tls.Config{Certificates: []tls.Certificate{cert}})
	client = tls.Client(d, &tls.Config{InsecureSkipVerify: true})
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return client, server
}
