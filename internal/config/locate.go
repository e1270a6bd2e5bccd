package config

import "errors"

// Locate returns err with the place of every [Problem] that it is, wraps or joins, as [Source.At] does for one. It is for
// what can only be found after loading: bad certificates, keys and addresses. Of a joined error it looks at each part, where
// errors.As would stop at the first.
func (s Source) Locate(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var located []error
		for _, e := range joined.Unwrap() {
			located = append(located, s.Locate(e))
		}
		return errors.Join(located...)
	}
	if p, ok := errors.AsType[Problem](err); ok {
		return s.At(p)
	}
	return err
}
