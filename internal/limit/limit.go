// Package limit says who may connect, how often, and how much at a time, and keeps account of everybody who may not.
//
//	accept ──> [Gate] ──> guard, TLS, HTTP ──> [Requests] ──> a stream for the request
//	             │ networks, connections            │ networks, requests per client and per endpoint,
//	             │ per listener and per address     │ failed tokens per client
//	             └────────────> [Reporter] <────────┘
//	                    counts all, logs some
//
// # Addresses
//
// A client is known by its IP address; of an IPv6 address the first 64 bits count, since whoever has one such network
// has all the addresses in it. Connections over loopback and Unix sockets come from this host, often from a proxy that
// stands for many clients. They are not limited one by one, nor are those of trusted proxies.
//
// # Memory
//
// No table grows with what strangers do: those of rates have a fixed size and forget first who has asked least of late,
// and those of connections hold one entry for an address that has one open.
//
// # Concurrency
//
// Everything is safe for concurrent use, and nothing blocks but Accept. Settings are replaced as a whole by Apply.
//
// The package answers nobody: that is for those who ask it.
package limit

import (
	"net"
	"net/netip"
	"slices"
)

// Networks is a set of networks.
type Networks []netip.Prefix

// Contains reports whether one of the networks holds addr, be it written as IPv4 or as IPv4 in IPv6.
func (n Networks) Contains(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	return slices.ContainsFunc(n, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// Access says which addresses may come.
type Access struct {
	Allow Networks // empty: all
	Deny  Networks // wins over Allow
}

// Permits reports whether addr may come. An invalid one, which is that of a Unix socket, always may: its file mode says
// who can connect.
func (a Access) Permits(addr netip.Addr) bool {
	if !addr.IsValid() {
		return true
	}
	return !a.Deny.Contains(addr) && (len(a.Allow) == 0 || a.Allow.Contains(addr))
}

// Empty reports whether everybody may come.
func (a Access) Empty() bool { return len(a.Allow) == 0 && len(a.Deny) == 0 }

// AddressOf returns the IP address of the other end of a connection; invalid for one that has none.
func AddressOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap().WithZone("")
	}
	if a == nil {
		return netip.Addr{}
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// network6 is how much of an IPv6 address stands for one client, in bits.
const network6 = 64

// account returns what a client is known by.
func account(addr netip.Addr) netip.Addr {
	if addr.Is4() || !addr.IsValid() {
		return addr
	}
	p, err := addr.Prefix(network6)
	if err != nil {
		return addr // can't be: every IPv6 address has that many bits
	}
	return p.Addr()
}
