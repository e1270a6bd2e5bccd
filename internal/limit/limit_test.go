package limit

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/pikoproxy/piko/internal/fault"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestAccess(t *testing.T) {
	nets := func(all ...string) (n Networks) {
		for _, s := range all {
			n = append(n, netip.MustParsePrefix(s))
		}
		return n
	}
	for _, c := range []struct {
		name   string
		access Access
		addr   netip.Addr
		want   bool
	}{
		{"no lists", Access{}, addr("192.0.2.1"), true},
		{"allowed", Access{Allow: nets("192.0.2.0/24")}, addr("192.0.2.1"), true},
		{"not allowed", Access{Allow: nets("192.0.2.0/24")}, addr("198.51.100.1"), false},
		{"denied", Access{Deny: nets("192.0.2.0/24")}, addr("192.0.2.1"), false},
		{"denied and allowed", Access{Allow: nets("192.0.0.0/16"), Deny: nets("192.0.2.0/24")}, addr("192.0.2.1"), false},
		// CVE-2024-24790 and its like: an IPv4 address may come in the form of IPv6.
		{"denied, mapped", Access{Deny: nets("192.0.2.0/24")}, addr("::ffff:192.0.2.1"), false},
		{"denied, with a zone", Access{Deny: nets("fe80::/10")}, addr("fe80::1%eth0"), false},
		{"unix socket", Access{Allow: nets("192.0.2.0/24")}, netip.Addr{}, true},
	} {
		if got := c.access.Permits(c.addr); got != c.want {
			t.Errorf("%s: permitted: %v, want %v", c.name, got, c.want)
		}
	}
}

// clock is a time that stands still until it is moved.
func clock(b *Buckets) *time.Duration {
	now := new(time.Duration)
	b.now = func() time.Duration { return *now }
	return now
}

func TestBucketsGrantTheBurstAndThenTheRate(t *testing.T) {
	b := NewBuckets()
	now := clock(b)
	r := Rate{PerSecond: 10, Burst: 5}
	granted := func(tries int) (n int) {
		for range tries {
			if b.AllowAddress(addr("192.0.2.1"), r) {
				n++
			}
		}
		return n
	}
	if n := granted(20); n != 5 {
		t.Errorf("%d granted at once, want the burst of 5", n)
	}
	*now += 300 * time.Millisecond
	if n := granted(20); n != 3 {
		t.Errorf("%d granted after 300 ms, want 3", n)
	}
	*now += time.Hour
	if n := granted(20); n != 5 {
		t.Errorf("%d granted after an hour, want the burst of 5", n)
	}
	if !b.AllowAddress(addr("192.0.2.2"), r) {
		t.Error("one client pays for another")
	}
	if !b.AllowAddress(netip.Addr{}, r) || !b.AllowAddress(addr("192.0.2.1"), Rate{}) {
		t.Error("a limit where there is none")
	}
}

func TestOneIPv6NetworkIsOneClient(t *testing.T) {
	b := NewBuckets()
	clock(b)
	r := Rate{PerSecond: 1, Burst: 2}
	for i := range 3 {
		if got := b.AllowAddress(addr(fmt.Sprintf("2001:db8:0:1::%x", i+1)), r); got != (i < 2) {
			t.Errorf("address %d of a /64: %v", i, got)
		}
	}
	if !b.AllowAddress(addr("2001:db8:0:2::1"), r) {
		t.Error("another /64 pays for it")
	}
}

// However many addresses come, the table stays as it is, and a client that is over its rate is not forgotten for the
// sake of others that have asked once.
func TestBucketsKeepTheirSize(t *testing.T) {
	b := NewBuckets()
	clock(b)
	r := Rate{PerSecond: 1, Burst: 100}
	greedy := addr("192.0.2.1")
	for range 100 {
		b.AllowAddress(greedy, r)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	src := rand.New(rand.NewPCG(1, 2))
	for range 1_000_000 {
		var raw [16]byte
		for i := range raw {
			raw[i] = byte(src.Uint32())
		}
		b.AllowAddress(netip.AddrFrom16(raw), r)
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 256<<10 {
		t.Errorf("a million clients cost %d bytes", grown)
	}
	if b.AllowAddress(greedy, r) {
		t.Error("a million clients made the table forget the greedy one")
	}
}

// fake is a connection from any address.
type fake struct {
	net.Conn
	from   net.Addr
	closed chan struct{}
	once   sync.Once
}

func (f *fake) RemoteAddr() net.Addr { return f.from }
func (f *fake) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

type fakeListener struct {
	net.Listener
	next chan net.Conn
}

func (l *fakeListener) Accept() (net.Conn, error) {
	c, ok := <-l.next
	if !ok {
		return nil, io.EOF
	}
	return c, nil
}

func dialed(from string) *fake {
	return &fake{from: net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr(from), 4000)), closed: make(chan struct{})}
}

func isClosed(f *fake) bool {
	select {
	case <-f.closed:
		return true
	default:
		return false
	}
}

func TestGate(t *testing.T) {
	log, hook := logtest.NewNullLogger()
	report := NewReporter(log, nil)
	full := false
	g := NewGate(Proxy, GateSettings{
		Connections: 4, PerAddress: 2,
		Access: Access{Deny: Networks{netip.MustParsePrefix("203.0.113.0/24")}},
		Exempt: Networks{netip.MustParsePrefix("198.51.100.0/24")},
	}, report, func() bool { return full })
	var open []net.Conn
	arrive := func(from string, reason Reason) {
		t.Helper()
		before := 0.0
		if reason != "" {
			before = testutil.ToFloat64(report.rejects.WithLabelValues(Proxy, string(reason)))
		}
		l := &fakeListener{next: make(chan net.Conn, 1)}
		f := dialed(from)
		l.next <- f
		close(l.next)
		c, err := g.Listen(l).Accept()
		if reason == "" {
			if err != nil {
				t.Fatalf("%s was not let in", from)
			}
			open = append(open, c)
			return
		}
		if err == nil || !isClosed(f) {
			t.Fatalf("%s was let in, want %s", from, reason)
		}
		if n := testutil.ToFloat64(report.rejects.WithLabelValues(Proxy, string(reason))); n != before+1 {
			t.Errorf("%s counted %v times, want once", reason, n-before)
		}
		if e := hook.LastEntry(); e == nil || e.Data["reason"] != string(reason) || e.Data["listener"] != Proxy {
			t.Errorf("%s: last line of the log is %v", reason, e)
		}
	}
	leave := func() {
		for _, c := range open {
			_ = c.Close()
			_ = c.Close() // counts once
		}
		open = nil
	}
	arrive("203.0.113.9", AddressDenied)
	arrive("192.0.2.1", "")
	arrive("192.0.2.1", "")
	arrive("192.0.2.1", AddressConnections)
	arrive("192.0.2.2", "")
	arrive("192.0.2.3", "")
	arrive("192.0.2.4", Connections)
	leave()
	if g.Open() != 0 {
		t.Errorf("%d open after all were closed", g.Open())
	}
	for range 3 { // neither a balancer nor this host itself
		arrive("198.51.100.1", "")
	}
	leave()
	for range 3 {
		arrive("127.0.0.1", "")
	}
	leave()
	full = true
	arrive("192.0.2.1", OutOfMemory)
	full = false
	g.Apply(GateSettings{PerAddress: 1})
	arrive("192.0.2.1", "")
	arrive("192.0.2.1", AddressConnections)
	leave()
	for i := range g.shards {
		if n := len(g.shards[i].open); n != 0 {
			t.Errorf("%d addresses are still known", n)
		}
	}
}

func TestReporterLimitsLines(t *testing.T) {
	log, hook := logtest.NewNullLogger()
	reg := prometheus.NewRegistry()
	r := NewReporter(log, reg)
	began := time.Now()
	for range 1000 {
		r.Reject(Proxy, BadFraming, logrus.Fields{"remote": "192.0.2.1:1", "err": nil})
	}
	lines, seconds := len(hook.AllEntries()), int(time.Since(began)/time.Second)
	if lines < linesPerSecond || lines > linesPerSecond*(2+seconds) {
		t.Errorf("%d lines in %d seconds and a bit, want %d for each", lines, seconds, linesPerSecond)
	}
	r.Reject(Upstream, BadFraming, nil)
	if e := hook.LastEntry(); e.Data["listener"] != Upstream {
		t.Error("one listener silences another")
	}
	if n := testutil.ToFloat64(r.rejects.WithLabelValues(Proxy, string(BadFraming))); n != 1000 {
		t.Errorf("counted %v, want 1000", n)
	}
	r.kinds[kind{"rejected", Proxy, string(BadFraming)}].limit.SetBurst(10_000) // as if a second had passed
	r.kinds[kind{"rejected", Proxy, string(BadFraming)}].limit.SetLimit(1e9)
	rejects := 1000
	for hook.LastEntry().Data["listener"] != Proxy {
		r.Reject(Proxy, BadFraming, nil)
		rejects++
	}
	told := 0
	for _, e := range hook.AllEntries() {
		if suppressed, _ := e.Data["suppressed"].(int); e.Data["listener"] == Proxy {
			told += 1 + suppressed
		}
	}
	if told != rejects {
		t.Errorf("the lines tell of %d rejections, want %d", told, rejects)
	}
	(*Reporter)(nil).Reject(Proxy, BadFraming, nil)
}

func TestRequests(t *testing.T) {
	client := addr("192.0.2.1")
	r := NewRequests(RequestSettings{
		Access:      Access{Deny: Networks{netip.MustParsePrefix("203.0.113.0/24")}},
		PerAddress:  Rate{PerSecond: 0.001, Burst: 2},
		PerEndpoint: Rate{PerSecond: 0.001, Burst: 3},
		FailedAuth:  Rate{PerSecond: 0.001, Burst: 1},
		Endpoints: map[string]EndpointSettings{
			"own":    {Rate: Rate{PerSecond: 0.001, Burst: 1}},
			"closed": {Access: Access{Allow: Networks{netip.MustParsePrefix("198.51.100.0/24")}}},
		},
	})
	if f := r.Client(addr("203.0.113.1")); f != &fault.AddressDenied {
		t.Errorf("denied client: %v", f)
	}
	for i, want := range []*fault.Fault{nil, nil, &fault.RateLimited} {
		if f := r.Client(client); f != want {
			t.Errorf("request %d of a client: %v", i, f)
		}
	}
	for i, want := range []*fault.Fault{nil, nil, nil, &fault.EndpointBusy} {
		if f := r.Endpoint(client, "any"); f != want {
			t.Errorf("request %d for an endpoint: %v", i, f)
		}
	}
	for i, want := range []*fault.Fault{nil, &fault.EndpointBusy} {
		if f := r.Endpoint(client, "own"); f != want {
			t.Errorf("request %d for an endpoint with a rate of its own: %v", i, f)
		}
	}
	if f := r.Endpoint(client, "closed"); f != &fault.AddressDenied {
		t.Errorf("client that an endpoint does not allow: %v", f)
	}
	if f := r.Endpoint(addr("198.51.100.7"), "closed"); f != nil {
		t.Errorf("client that an endpoint allows: %v", f)
	}
	if r.BadToken(client) != nil || r.BadToken(client) != &fault.TooManyFailures {
		t.Error("bad tokens are not limited")
	}
	r.Apply(RequestSettings{})
	if r.Client(client) != nil || r.Endpoint(client, "any") != nil || r.BadToken(client) != nil {
		t.Error("limits are left after they were taken away")
	}
}

// Every fault is either counted with a reason or nobody's who came from outside.
func TestEveryFaultHasAReason(t *testing.T) {
	own := "Internal NoUpstreams UpstreamUnreachable ServiceUnreachable UpstreamBroke AuthUnavailable"
	blameless := map[string]bool{
		fault.Internal.Code: true, fault.NoUpstreams.Code: true, fault.UpstreamUnreachable.Code: true,
		fault.ServiceUnreachable.Code: true, fault.UpstreamBroke.Code: true, fault.AuthUnavailable.Code: true,
	}
	for _, f := range fault.All() {
		if (ReasonOf(f.Code) == "") != blameless[f.Code] {
			t.Errorf("%s (%s): reason %q; without one are only %s", f.Code, f.Title, ReasonOf(f.Code), own)
		}
	}
}

// The other end reads nothing: the kernel gives up, under whatever layers are on top, until the limit is lifted.
func TestNoProgress(t *testing.T) {
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	g := NewGate(Proxy, GateSettings{NoProgress: 500 * time.Millisecond}, nil, nil)
	l := g.Listen(raw)
	fill := func(patient bool, within time.Duration) error {
		client, err := net.Dial("tcp", raw.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = client.Close() }()
		_ = client.(*net.TCPConn).SetReadBuffer(4 << 10)
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if patient {
			Patient(c)
		}
		_ = c.SetWriteDeadline(time.Now().Add(within))
		for {
			if _, err := c.Write(make([]byte, 1<<20)); err != nil {
				return err
			}
		}
	}
	if runtime.GOOS == "linux" {
		if err := fill(false, time.Minute); !strings.Contains(err.Error(), "connection timed out") {
			t.Errorf("a connection that nobody reads from: %v", err)
		}
	}
	if err := fill(true, 3*time.Second); !os.IsTimeout(err) || strings.Contains(err.Error(), "connection timed out") {
		t.Errorf("a connection whose limit was lifted: %v", err)
	}
}

// The other end reads a little now and then, which the kernel takes for progress.
func TestLeastRateOfReading(t *testing.T) {
	if runtime.GOOS != "linux" {
		return // the kernel does not tell
	}
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	log, _ := logtest.NewNullLogger()
	report := NewReporter(log, nil)
	const span = time.Minute
	g := NewGate(Proxy, GateSettings{NoProgress: span, LeastRate: 256}, report, nil)
	l := g.Listen(raw)
	open := func() (client, server net.Conn) {
		client, err := net.Dial("tcp", raw.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		_ = client.(*net.TCPConn).SetReadBuffer(4 << 10)
		server, err = l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = server.Close() })
		return client, server
	}
	fill := func(c net.Conn) int64 {
		_ = c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := io.Copy(c, endless{})
		if !os.IsTimeout(err) {
			t.Fatal(err)
		}
		return n
	}
	_, trickle := open()
	if n := fill(trickle); n > 2<<20 {
		t.Errorf("the kernel took %d bytes for a client that reads nothing", n)
	}
	reader, quick := open()
	fill(quick)
	_, upgraded := open()
	fill(upgraded)
	Patient(upgraded)
	_, idle := open()
	now := time.Now()
	g.look(now, nil)
	_ = quick.SetWriteDeadline(time.Time{})
	go func() { _, _ = io.Copy(quick, endless{}) }() // until it is closed: there is always more
	if n, err := io.CopyN(io.Discard, reader, 64<<10); err != nil {
		t.Fatal(n, err)
	}
	g.look(now.Add(span-time.Second), nil)
	if n := g.Open(); n != 4 {
		t.Fatalf("%d of 4 connections are open before the time is over", n)
	}
	g.look(now.Add(span), nil)
	for _, c := range []struct {
		name string
		conn net.Conn
		open bool
	}{{"too slow", trickle, false}, {"quick enough", quick, true}, {"upgraded", upgraded, true}, {"idle", idle, true}} {
		if err := c.conn.SetWriteDeadline(time.Time{}); (err == nil) != c.open {
			t.Errorf("%s: open: %v", c.name, err == nil)
		}
	}
	if n := testutil.ToFloat64(report.rejects.WithLabelValues(Proxy, string(SlowReader))); n != 1 || g.Open() != 3 {
		t.Errorf("%v were turned away, %d are open", n, g.Open())
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }
