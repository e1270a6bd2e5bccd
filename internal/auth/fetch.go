package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/pikoproxy/piko/internal/config"
)

// maxSet is the largest key set that is read, in bytes.
const maxSet = 1 << 20

// source is where a key set comes from. Only one goroutine fetches.
type source struct {
	url     *url.URL
	timeout time.Duration
	agent   string
	client  *http.Client
	failed  *atomic.Pointer[string] // what went wrong last; nil after a good fetch
}

// newSource takes https, http to a loopback address, and files, and reports whether u is such. The client follows no redirect and asks no proxy, so
// that a key set comes from where the settings say.
func newSource(u *url.URL, timeout time.Duration, version string) (source, bool) {
	s := source{
		url: u, timeout: timeout, agent: "piko/" + version, failed: new(atomic.Pointer[string]),
	}
	switch {
	case u.Scheme == "file" && u.Host == "" && u.Path != "":
		return s, true
	case u.Scheme == "https" && u.Host != "":
	case u.Scheme == "http" && loopback(u.Hostname()):
	default:
		return s, false
	}
	s.client = &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			MaxResponseHeaderBytes: 64 << 10, TLSHandshakeTimeout: timeout, ResponseHeaderTimeout: timeout,
			DisableKeepAlives: true, ForceAttemptHTTP2: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return s, true
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// name returns the source without what may be secret.
func (s source) name() string { return config.PrivateURL(s.url.String()).String() }

// trouble returns what went wrong last, as the tail of a sentence.
func (s source) trouble() string {
	if text := s.failed.Load(); text != nil {
		return ": " + *text
	}
	return ""
}

// fetch returns the set with its entity tag, or nil if it is still the one that had a tag.
func (s source) fetch(ctx context.Context, had string) (set *jose.JSONWebKeySet, etag string, err error) {
	set, etag, err = s.read(ctx, had)
	if err != nil {
		text := err.Error()
		s.failed.Store(&text)
		return nil, "", err
	}
	s.failed.Store(nil)
	return set, etag, nil
}

func (s source) read(ctx context.Context, had string) (set *jose.JSONWebKeySet, etag string, err error) {
	if s.client == nil {
		f, err := os.Open(s.url.Path)
		if err != nil {
			return nil, "", err
		}
		defer func() { _ = f.Close() }() // it was only read
		set, err = decodeSet(f)
		return set, "", err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url.String(), nil)
	if err != nil {
		return nil, "", err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	req.Header.Set("User-Agent", s.agent)
	if had != "" {
		req.Header.Set("If-None-Match", had)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		if outer, ok := errors.AsType[*url.Error](err); ok {
			err = outer.Err // it repeats the whole address
		}
		return nil, "", err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotModified:
		if had == "" {
			return nil, "", errors.New("status 304, though it was not asked whether the set has changed")
		}
		return nil, had, nil
	default:
		return nil, "", fmt.Errorf("status %d", resp.StatusCode)
	}
	set, err = decodeSet(resp.Body)
	return set, resp.Header.Get("ETag"), err
}

// decodeSet reads a key set. A key of a kind that the library does not know is passed over, so that one exotic key does
// not lock everybody out.
func decodeSet(r io.Reader) (*jose.JSONWebKeySet, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxSet+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxSet {
		return nil, fmt.Errorf("key set is larger than %d bytes", maxSet)
	}
	var members struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(raw, &members); err != nil || members.Keys == nil {
		return nil, errors.New("not a key set: want a JSON object with keys")
	}
	if len(members.Keys) > maxKeys {
		return nil, fmt.Errorf("key set has %d keys, at most %d are taken", len(members.Keys), maxKeys)
	}
	set := new(jose.JSONWebKeySet)
	for _, member := range members.Keys {
		var k jose.JSONWebKey
		if k.UnmarshalJSON(member) == nil {
			set.Keys = append(set.Keys, k)
		}
	}
	if len(usable(set)) == 0 {
		return nil, errors.New("key set holds no public signing key of a known kind")
	}
	return set, nil
}
