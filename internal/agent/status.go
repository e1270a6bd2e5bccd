package agent

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// status is the answer to GET /status.
type status struct {
	Draining  bool             `json:"draining"`
	Sessions  []sessionStatus  `json:"sessions"`
	Listeners []listenerStatus `json:"listeners"`
	Reload    any              `json:"reload,omitempty"`
}

type sessionStatus struct {
	Node     string    `json:"node"`
	Since    time.Time `json:"since"`
	RTT      string    `json:"rtt,omitempty"`
	Draining bool      `json:"draining"`
}

type listenerStatus struct {
	Endpoint string   `json:"endpoint"`
	Protocol string   `json:"protocol"`
	Service  string   `json:"service"`
	State    string   `json:"state"`
	Nodes    []string `json:"nodes"`
	InFlight int64    `json:"in_flight"`
	Err      string   `json:"err,omitempty"`
}

func (a *Agent) status() status {
	s := status{Draining: a.draining.Load(), Sessions: []sessionStatus{}, Listeners: []listenerStatus{}}
	for _, one := range a.client.Sessions() {
		st := sessionStatus{Node: one.NodeID, Since: one.Since, Draining: one.Draining}
		if one.RTT > 0 {
			st.RTT = one.RTT.String()
		}
		s.Sessions = append(s.Sessions, st)
	}
	slices.SortFunc(s.Sessions, func(a, b sessionStatus) int {
		return cmp.Or(strings.Compare(a.Node, b.Node), a.Since.Compare(b.Since))
	})
	if a.options.Reloaded != nil {
		s.Reload = a.options.Reloaded()
	}
	for _, l := range a.current.Load().listeners {
		st := listenerStatus{
			Endpoint: l.settings.Endpoint,
			Protocol: l.settings.Protocol,
			Service:  l.service.text,
			State:    l.state(),
			Nodes:    []string{},
			InFlight: l.inFlight.Load(),
		}
		if ln := l.offered.Load(); ln != nil {
			st.Nodes = append(st.Nodes, ln.Nodes()...)
			slices.Sort(st.Nodes)
			if err := ln.Err(); err != nil {
				st.Err = err.Error()
			}
		}
		s.Listeners = append(s.Listeners, st)
	}
	return s
}

// summary is the status in one line, for systemd.
func (a *Agent) summary() string {
	if a.draining.Load() {
		return "draining"
	}
	return fmt.Sprintf("%d of %d endpoints routable, %d sessions",
		a.states()[stateRoutable], len(a.current.Load().listeners), len(a.client.Sessions()))
}
