package tunnel

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestSmoke(t *testing.T) {
	sessions := make(chan *Session, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := AcceptNative(w, r, NodeOptions{NodeID: "n1"})
		if err != nil {
			t.Error(err)
			return
		}
		sessions <- s
	}))
	defer srv.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	a, err := Dial(ctx, DialOptions{URL: srv.URL, Hello: Hello{AgentID: "a"}})
	if err != nil {
		t.Fatal(err)
	}
	s := <-sessions
	t.Log(a.NodeID(), a.Limits(), s.Agent(), s.RTT(), a.RTT())
	go func() {
		in, err := a.Accept(ctx)
		if err != nil {
			t.Error(err)
			return
		}
		st, err := in.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		io.Copy(st, st)
		st.Close()
	}()
	st, err := s.Open(ctx, Header{Endpoint: "x"})
	if err != nil {
		t.Fatal(err)
	}
	st.Write([]byte("hello"))
	st.CloseWrite()
	b, err := io.ReadAll(st)
	t.Log(string(b), err)
	st.Close()
	t.Log(a.Shutdown(ctx), s.Shutdown(ctx), a.Err(), s.Err())
	s.Wait()
	a.Wait()
}
