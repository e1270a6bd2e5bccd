package proxy

import (
	"net/textproto"
	"strings"

	"github.com/pikoproxy/piko/internal/syntax"
)

// trait is what the name of a request's field means to a proxy. A request has the traits of all its fields.
type trait uint8

const (
	ordinary trait = 1 << iota // goes on to the service, whatever the settings say, unless Connection names it
	hasConnection
	hasUpgrade
	hasTE
	hasExpect
	hasEndpoint
	hasTrace
	hasPragma
)

// traitOf returns the traits of a name in canonical form.
func traitOf(name string) trait {
	switch name {
	case "Connection":
		return hasConnection
	case "Upgrade":
		return hasUpgrade
	case "Te":
		return hasTE
	case "Expect":
		return hasExpect
	case endpointHeader:
		return hasEndpoint
	case "Traceparent":
		return ordinary | hasTrace
	case "Pragma":
		return ordinary | hasPragma
	case "Authorization", "Max-Forwards":
		return 0
	}
	if strings.Contains(name, "_") || dropped(name) || forwarding(name) || !syntax.IsToken(name) {
		return 0
	}
	return ordinary
}

// spelling is a field's name as a client writes it, its canonical form, and what that means.
type spelling struct {
	raw, canonical string
	trait          trait
}

// spellings remembers the names that the last request of a connection had, by their places: clients send the same fields again
// and again.
type spellings []spelling

// What is kept of names between the requests of a connection.
const (
	maxKeptNames = 32
	maxKeptName  = 64 // bytes
)

// of returns what there is to know of the name of field i.
func (k *spellings) of(i int, name string) spelling {
	if i < len(*k) && (*k)[i].raw == name {
		return (*k)[i]
	}
	kept := len(name) <= maxKeptName && i <= len(*k) && i < maxKeptNames
	if kept {
		name = strings.Clone(name) // a part of the head would keep all of it for as long as the connection lasts
	}
	s := spelling{raw: name, canonical: textproto.CanonicalMIMEHeaderKey(name)}
	s.trait = traitOf(s.canonical)
	switch {
	case !kept:
	case i < len(*k):
		(*k)[i] = s
	default:
		*k = append(*k, s)
	}
	return s
}

// lines returns the lines of a field that has a trait of its own.
func (x *exchange) lines(t trait, name string) []string {
	if x.plain != nil && x.plain.traits&t == 0 {
		return nil
	}
	return x.r.Header[name]
}
