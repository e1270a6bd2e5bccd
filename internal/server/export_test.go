package server

import "github.com/pikoproxy/piko/internal/limit"

// Turns are those of the node's TLS handshakes.
func (s *Server) Turns() *limit.Turns { return s.limits.turns }
