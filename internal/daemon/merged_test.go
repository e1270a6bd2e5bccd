package daemon

import (
	"net"
	"testing"
)

// telling is a listener that tells when it has accepted.
type telling struct {
	net.Listener
	accepted chan struct{}
}

func (l telling) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.accepted <- struct{}{}
	}
	return c, err
}

// What a client has connected to is served, though the sockets are closed before anybody asks for it.
func TestMergedKeepsWhatItHasAccepted(t *testing.T) {
	one, other := telling{listenTCP(t), make(chan struct{}, 2)}, listenTCP(t)
	m := newMerged([]*socket{{Listener: one, home: &sockets{}}, {Listener: other, home: &sockets{}}})
	var clients []net.Conn
	for range 2 {
		c, err := net.Dial("tcp", one.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		clients = append(clients, c)
	}
	first, err := m.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	<-one.accepted
	<-one.accepted // nobody has asked for this one
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	second, err := m.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	for i, c := range []net.Conn{first, second} {
		if have, want := c.RemoteAddr().String(), clients[i].LocalAddr().String(); have != want {
			t.Errorf("connection %d is from %s, want %s", i, have, want)
		}
	}
	if _, err := m.Accept(); err == nil {
		t.Error("a third connection")
	}
}
