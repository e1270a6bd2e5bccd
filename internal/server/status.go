package server

import (
	"net/http"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/admin"
	"github.com/pikoproxy/piko/internal/endpoint"
	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/limit"
	"github.com/pikoproxy/piko/internal/router"
)

// overview is the answer to /status.
type overview struct {
	Node      string    `json:"node"`
	Version   string    `json:"version"`
	Status    string    `json:"status"`
	Started   time.Time `json:"started"`
	Settings  string    `json:"settings"` // digest
	Endpoints int       `json:"endpoints"`
	Sessions  int       `json:"sessions"`
	Reload    any       `json:"reload,omitempty"`
}

// nodeStatus is one line of /status/cluster/nodes. Endpoints is their number there, and a map in the answer for one
// node.
type nodeStatus struct {
	ID        string `json:"id"`
	Status    string `json:"status"`
	ProxyAddr string `json:"proxy_addr"`
	AdminAddr string `json:"admin_addr"`
	Endpoints any    `json:"endpoints"`
	Upstreams int    `json:"upstreams"`
}

// sessionStatus is one line of /status/sessions.
type sessionStatus struct {
	ID        string     `json:"id"`
	Kind      string     `json:"kind"`
	Agent     string     `json:"agent"`
	Remote    string     `json:"remote"`
	Tenant    string     `json:"tenant"`
	Endpoint  string     `json:"endpoint,omitempty"` // of a classic session
	Endpoints int        `json:"endpoints"`
	Streams   int        `json:"streams"`
	RTT       string     `json:"rtt"`
	Since     time.Time  `json:"since"`
	Closing   bool       `json:"closing"`
	Expires   *time.Time `json:"expires,omitempty"` // of the token
}

func (s *Server) statusFuncs() map[string]admin.StatusFunc {
	plain := func(f func() any) admin.StatusFunc {
		return func(*http.Request) (any, error) { return f(), nil }
	}
	return map[string]admin.StatusFunc{
		"":                     plain(func() any { return s.overview() }),
		"upstream/endpoints":   plain(func() any { return s.router.Endpoints() }),
		"cluster/nodes":        plain(func() any { return s.nodes() }),
		"cluster/nodes/{id}":   s.nodeByID,
		"sessions":             plain(func() any { return s.sessionList() }),
		"routes/{endpoint...}": s.route,
	}
}

func (s *Server) overview() overview {
	endpoints, _ := s.router.Size()
	return overview{
		Node: s.id, Version: s.o.Version, Status: s.status(), Started: s.started.UTC(), Settings: s.now().config.Digest(),
		Endpoints: endpoints, Sessions: s.sessions.len(), Reload: s.reloaded(),
	}
}

// reloaded is what became of the last reload, if anybody knows.
func (s *Server) reloaded() any {
	if s.o.Reloaded == nil {
		return nil
	}
	return s.o.Reloaded()
}

func (s *Server) status() string { return state(s.state.Load()).String() }

// node describes this node, with the names of its endpoints or only their number.
func (s *Server) node(names bool) nodeStatus {
	endpoints, upstreams := s.router.Size()
	n := nodeStatus{
		ID: s.id, Status: s.status(), ProxyAddr: s.addrText(proxyListener), AdminAddr: s.addrText(adminListener),
		Endpoints: endpoints, Upstreams: upstreams,
	}
	if names {
		n.Endpoints = s.router.Endpoints()
	}
	return n
}

func (s *Server) nodeByID(r *http.Request) (any, error) {
	id := r.PathValue("id")
	if id == "local" || id == s.id {
		return s.node(true), nil
	}
	if others := s.others(); others != nil {
		if remote, ok := others.table.Node(id); ok {
			n := others.status(remote)
			n.Endpoints = others.table.Weights(id)
			return n, nil
		}
	}
	return nil, admin.ErrNotFound
}

func (s *Server) sessionList() []sessionStatus {
	list := []sessionStatus{}
	for _, x := range s.sessions.sorted() {
		st := sessionStatus{
			ID: x.tunnel.ID(), Kind: kindOf(x.tunnel).String(), Agent: x.tunnel.Agent().AgentID,
			Remote: x.tunnel.RemoteAddr().String(), Tenant: x.tenant, Endpoint: x.classic, Endpoints: x.count(),
			Streams: x.tunnel.Streams(), Since: x.since.UTC(),
		}
		if rtt := x.tunnel.RTT(); rtt > 0 {
			st.RTT = rtt.Round(time.Microsecond).String()
		}
		if id := x.identity.Load(); id != nil {
			expires := id.Expires.UTC()
			st.Expires = &expires
		}
		select {
		case <-x.tunnel.Closing():
			st.Closing = true
		default:
		}
		list = append(list, st)
	}
	return list
}

// route explains where a request for an endpoint would go. A tenant's endpoint is named tenant/endpoint.
func (s *Server) route(r *http.Request) (any, error) {
	tenant, name, found := strings.Cut(r.PathValue("endpoint"), "/")
	if !found {
		tenant, name = "", tenant
	}
	name, err := endpoint.Parse(name)
	if err != nil {
		return nil, admin.ErrNotFound
	}
	x, _ := s.router.Explain(router.KeyOf(tenant, name))
	return x, nil
}

// adminGuard keeps out operators without a token, if the settings in use ask for one.
func (s *Server) adminGuard() func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := s.now().operator.Authenticate(r.Context(), r.Header); err != nil {
				f := faultOf(err)
				s.limits.report.Count(limit.Admin, limit.ReasonOf(f.Code))
				s.limits.report.Warn("operator refused", f.Code, logrus.Fields{"remote": r.RemoteAddr, "err": err})
				fault.Write(w, r, f, "")
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}
