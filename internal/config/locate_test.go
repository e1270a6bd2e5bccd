package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestLocateFindsThePlaceOfEveryProblem(t *testing.T) {
	s := Source{&source{places: map[string]place{"admin.tls": {"a.toml", 7}, "connect": {"a.toml", 2}}}}
	bad := func(key string) error { return Problem{Key: key, Have: "nothing"} }
	err := s.Locate(errors.Join(bad("admin.tls.cert"), errors.Join(bad("connect.tls.ca"), errors.New("other")),
		fmt.Errorf("wrapped: %w", bad("connect.url"))))
	const want = "a.toml:7: admin.tls.cert: nothing\na.toml:2: connect.tls.ca: nothing\nother\na.toml:2: connect.url: nothing"
	if err.Error() != want {
		t.Errorf("error is\n%v\nwant\n%s", err, want)
	}
	if s.Locate(nil) != nil {
		t.Error("nothing became an error")
	}
	if got := s.Locate(bad("proxy.tls")); strings.Contains(got.Error(), "a.toml") {
		t.Errorf("a key that was not set has a place: %v", got)
	}
}
