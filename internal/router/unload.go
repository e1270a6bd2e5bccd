package router

import "io"

// WriteTo implements [io.WriterTo]: it writes what the service sends to w until the service has ended its direction. Nobody
// else may be reading.
func (s *Stream) WriteTo(w io.Writer) (int64, error) {
	from, ok := s.pooled.Conn.(io.WriterTo)
	if !ok || s.ended.Load() {
		return io.Copy(w, struct{ io.Reader }{s})
	}
	to := &ear{w: w, s: s}
	to.try, _ = w.(trier)
	return from.WriteTo(to)
}

// trier is a writer that can be asked not to wait.
type trier interface {
	TryWrite(p []byte) int
}

// ear notes that the service has sent something.
type ear struct {
	w   io.Writer
	try trier // nil: it can't be asked
	s   *Stream
}

// Write implements io.Writer.
func (e *ear) Write(p []byte) (int, error) {
	e.s.heard()
	return e.w.Write(p)
}

// TryWrite writes what it can of p without waiting, and returns how much that is.
func (e *ear) TryWrite(p []byte) int {
	if e.try == nil {
		return 0
	}
	e.s.heard()
	return e.try.TryWrite(p)
}
