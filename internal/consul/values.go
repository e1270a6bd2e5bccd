package consul

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/pikoproxy/piko/internal/cluster"
	"github.com/pikoproxy/piko/internal/endpoint"
)

// The limits of what is read. Whoever can write to the tree can fill it with anything.
const (
	version     = 1
	maxMember   = 4 << 10
	maxHead     = 64 << 10
	maxBucket   = 128 << 10
	maxName     = 64 // bytes of the name of a node, of an incarnation, a zone or a version
	maxTenant   = 64
	maxWeight   = 1 << 30
	maxMembers  = 1000
	maxKeys     = 250_000 // of one node
	maxBuckets  = 1 << 14
	maxLists    = 4 // lists of nodes that are read at once
	minBuckets  = 16
	bucketFull  = 96 // keys per bucket, on average, from which on there are more buckets
	bucketReady = 48 // keys per bucket after that
)

// errNewer says that a value was written by a later version of Piko, in a form that this one does not know.
var errNewer = errors.New("written by a newer version")

// member is who a node is.
type member struct {
	Version     int           `json:"v"`
	Incarnation string        `json:"inc"`
	Addr        string        `json:"addr"`
	Proxy       string        `json:"proxy,omitempty"`
	Admin       string        `json:"admin,omitempty"`
	Program     string        `json:"ver,omitempty"`
	Zone        string        `json:"zone,omitempty"`
	Start       time.Time     `json:"start"`
	State       cluster.State `json:"state"`
}

// head says how far the buckets of a node are, and what changed last.
type head struct {
	Version     int      `json:"v"`
	Incarnation string   `json:"inc"`
	Write       uint64   `json:"w"` // counts the heads that this incarnation wrote
	Generation  uint64   `json:"g"` // of the buckets
	Buckets     int      `json:"b"` // how many there are
	Keys        int      `json:"n"`
	Seq         uint64   `json:"s"`
	Recent      []change `json:"r,omitempty"` // oldest first, each from where the one before leads to
}

// change is a cluster.Delta as a head carries it.
type change struct {
	From    uint64         `json:"f"`
	To      uint64         `json:"s"`
	Added   map[string]int `json:"a,omitempty"`
	Removed []string       `json:"d,omitempty"`
}

func newChange(d cluster.Delta) change {
	c := change{From: d.From, To: d.To}
	for key, weight := range d.Weights {
		if weight < 1 {
			c.Removed = append(c.Removed, key)
			continue
		}
		if c.Added == nil {
			c.Added = map[string]int{}
		}
		c.Added[key] = weight
	}
	return c
}

// delta returns the change as a Delta without the keys that are no keys, and how many those were.
func (c change) delta() (d cluster.Delta, bad int) {
	d = cluster.Delta{From: c.From, To: c.To, Weights: make(map[string]int, len(c.Added)+len(c.Removed))}
	for key, weight := range c.Added {
		if !goodKey(key) || weight < 1 || weight > maxWeight {
			bad++
			continue
		}
		d.Weights[key] = weight
	}
	for _, key := range c.Removed {
		if _, again := d.Weights[key]; again || !goodKey(key) {
			bad++
			continue
		}
		d.Weights[key] = 0
	}
	return d, bad
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("consul: a value of ours is no JSON: " + err.Error()) // not reached: they are numbers, texts and maps of them
	}
	return b
}

// decode reads a JSON object of at most limit bytes. Members that it does not know are passed over.
func decode(b []byte, limit int, v any) error {
	if len(b) > limit {
		return fmt.Errorf("has %d bytes, at most %d are allowed", len(b), limit)
	}
	return json.Unmarshal(b, v)
}

// decodeMember reads the record of the node with this name.
func decodeMember(name string, b []byte) (cluster.Node, error) {
	var m member
	if !goodName(name) {
		return cluster.Node{}, fmt.Errorf("%q is no name of a node", name)
	}
	if err := decode(b, maxMember, &m); err != nil {
		return cluster.Node{}, err
	}
	if m.Version != version {
		return cluster.Node{}, fmt.Errorf("version %d: %w", m.Version, errNewer)
	}
	if !goodName(m.Incarnation) {
		return cluster.Node{}, fmt.Errorf("%q is no incarnation", m.Incarnation)
	}
	if !goodAddress(m.Addr) {
		return cluster.Node{}, fmt.Errorf("%q is no address of a node", m.Addr)
	}
	if len(m.Proxy) > 255 || len(m.Admin) > 255 || !printable(m.Proxy+m.Admin) {
		return cluster.Node{}, errors.New("proxy or admin is no address")
	}
	if len(m.Zone) > maxName || len(m.Program) > maxName || !printable(m.Zone+m.Program) {
		return cluster.Node{}, errors.New("zone or version is too long or not printable")
	}
	if m.State != cluster.Up && m.State != cluster.Draining && m.State != cluster.Left {
		return cluster.Node{}, fmt.Errorf("state %q is not known", m.State)
	}
	return cluster.Node{
		ID: name, Incarnation: m.Incarnation, Addr: m.Addr, ProxyAddr: m.Proxy, AdminAddr: m.Admin, Zone: m.Zone,
		Version: m.Program, Started: m.Start, State: m.State,
	}, nil
}

func encodeMember(n cluster.Node) []byte {
	return encode(member{
		Version: version, Incarnation: n.Incarnation, Addr: n.Addr, Proxy: n.ProxyAddr, Admin: n.AdminAddr,
		Program: n.Version, Zone: n.Zone, Start: n.Started.UTC().Truncate(time.Second), State: n.State,
	})
}

func decodeHead(b []byte) (head, error) {
	var h head
	if err := decode(b, maxHead, &h); err != nil {
		return head{}, err
	}
	if h.Version != version {
		return head{}, fmt.Errorf("version %d: %w", h.Version, errNewer)
	}
	if !goodName(h.Incarnation) || h.Keys < 0 || h.Keys > maxKeys || h.Buckets < minBuckets || h.Buckets > maxBuckets {
		return head{}, errors.New("a number or the incarnation is out of bounds")
	}
	for i, c := range h.Recent {
		if c.From > c.To || c.To > h.Seq || i > 0 && c.From != h.Recent[i-1].To {
			return head{}, errors.New("the last changes do not follow each other")
		}
	}
	return h, nil
}

// decodeBucket adds what a bucket holds to keys. It returns how many entries were no keys.
func decodeBucket(b []byte, keys map[string]int) (bad int, err error) {
	held := map[string]int{}
	if err := decode(b, maxBucket, &held); err != nil {
		return 0, err
	}
	for key, weight := range held {
		if !goodKey(key) || weight < 1 || weight > maxWeight || len(keys) >= maxKeys {
			bad++
			continue
		}
		keys[key] = weight
	}
	return bad, nil
}

// bucketOf returns which of b buckets, a power of two, a key is in.
func bucketOf(key string, b int) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key)) // never an error
	return int(h.Sum32()) & (b - 1)
}

// bucketsFor returns how many buckets n keys need when there are b, or none yet. They do not get fewer within a session.
func bucketsFor(n, b int) int {
	if b != 0 && (n <= b*bucketFull || b >= maxBuckets) {
		return b
	}
	b = max(b, minBuckets)
	for b < maxBuckets && n > b*bucketReady {
		b *= 2
	}
	return b
}

// bucketName is the last part of the name of a bucket.
func bucketName(i int) string { return fmt.Sprintf("%04x", i) }

// goodKey reports whether a key is one of the router's: a canonical endpoint, after a tenant and a slash if there is one.
func goodKey(key string) bool {
	name := key
	if i := strings.LastIndexByte(key, '/'); i >= 0 {
		tenant := key[:i]
		if name = key[i+1:]; tenant == "" || len(tenant) > maxTenant || !printable(tenant) {
			return false
		}
	}
	canonical, err := endpoint.Parse(name)
	return err == nil && canonical == name
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// goodName reports whether s can name a node or an incarnation: letters, digits, and inner '-', '_' and '.'.
func goodName(s string) bool {
	if len(s) == 0 || len(s) > maxName || strings.Contains(s, "..") {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case (c == '-' || c == '_' || c == '.') && i > 0 && i < len(s)-1:
		default:
			return false
		}
	}
	return true
}

// goodAddress reports whether a node may be reached at an address: a name or an IP address, and a port. Link-local
// addresses are refused, since metadata services live there and no node does.
func goodAddress(addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return false
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		ip = ip.Unmap()
		return !ip.IsUnspecified() && !ip.IsMulticast() && !ip.IsLinkLocalUnicast() && ip != netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	return len(host) <= 253 && goodHost(host)
}

func goodHost(host string) bool {
	for label := range strings.SplitSeq(host, ".") {
		if len(label) > 63 || !goodName(label) {
			return false
		}
	}
	return true
}
