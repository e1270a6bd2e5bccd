package cluster

// Met reports whether all nodes that are up, but for one, have a session to this one, so that they know what it holds.
func (p *Peers) Met(but string) bool {
	here := map[string]bool{}
	p.mu.Lock()
	for g := range p.guests {
		here[g.id+"/"+g.incarnation] = g.session.Load() != nil
	}
	p.mu.Unlock()
	for _, r := range p.o.Table.Nodes() {
		if n := r.Node(); n.ID != but && r.Standing() == Good && !here[identity(n)] {
			return false
		}
	}
	return true
}
