package auth

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/golang-jwt/jwt/v5"
)

// The headers that carry a token. Piko's own wins, so that a service behind Piko can use Authorization for itself.
const (
	PikoAuthorization = "X-Piko-Authorization"
	authorization     = "Authorization"
)

// bearer returns the token that a header carries.
func bearer(h http.Header) (string, error) {
	lines := h[PikoAuthorization]
	if len(lines) == 0 {
		lines = h[authorization]
	}
	switch {
	case len(lines) == 0 || len(lines) == 1 && lines[0] == "":
		return "", ErrMissing
	case len(lines) > 1:
		return "", fmt.Errorf("%w: it is given %d times", ErrMalformed, len(lines))
	}
	scheme, token, found := strings.Cut(lines[0], " ")
	if !found || token == "" || strings.ContainsAny(token, " \t,") {
		return "", ErrMalformed
	}
	if !strings.EqualFold(scheme, "Bearer") {
		return "", ErrScheme
	}
	return token, nil
}

// claims are what Piko reads of a token.
type claims struct {
	jwt.RegisteredClaims
	Piko struct {
		Endpoints []string `json:"endpoints"`
		Roles     roles    `json:"role"`
	} `json:"piko"`
}

// roles is one role or a list of them.
type roles []string

// UnmarshalJSON takes a string or a list of strings.
func (r *roles) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		*r = make(roles, 1)
		return json.Unmarshal(b, &(*r)[0])
	}
	return json.Unmarshal(b, (*[]string)(r))
}

// precheck refuses what the JWT library would let pass: it costs little and comes before any signature is computed.
func precheck(token string) error {
	if len(token) > MaxToken {
		return fmt.Errorf("%w: it has %d bytes, at most %d are read", ErrInvalid, len(token), MaxToken)
	}
	parts := strings.SplitN(token, ".", 4)
	if len(parts) != 3 {
		return fmt.Errorf("%w: want three parts", ErrInvalid)
	}
	header, err := names(parts[0])
	if err != nil {
		return fmt.Errorf("%w: header: %w", ErrInvalid, err)
	}
	for _, extension := range []string{"crit", "b64"} {
		if header[extension] {
			return fmt.Errorf("%w: header has %q, which is not supported", ErrInvalid, extension)
		}
	}
	if _, err := names(parts[1]); err != nil {
		return fmt.Errorf("%w: claims: %w", ErrInvalid, err)
	}
	return nil
}

// names returns the member names of a base64url-coded JSON object. A name that is given twice is an error: parsers
// disagree on which of the two counts.
func names(part string) (map[string]bool, error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil {
		return nil, errors.New("not base64url")
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	found := map[string]bool{}
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	for d.More() {
		t, err := d.Token()
		name, isName := t.(string)
		if err != nil || !isName {
			return nil, errors.New("not a JSON object")
		}
		// Go's decoder matches names without regard to case, so "EXP" would count as exp.
		if name = strings.ToLower(name); found[name] {
			return nil, errors.New("a name is given twice")
		}
		found[name] = true
		if err := unique(d); err != nil {
			return nil, err
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, errors.New("not a JSON object")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("trailing bytes")
	}
	return found, nil
}

// unique reads one value and refuses an object, at any depth, that has a name twice.
func unique(d *json.Decoder) error {
	var raw json.RawMessage
	if err := d.Decode(&raw); err != nil {
		return errors.New("not JSON")
	}
	inner := json.NewDecoder(bytes.NewReader(raw))
	var open []map[string]bool // one for each open object, nil for an array
	name := false              // whether the next token in the innermost object is a name
	for {
		t, err := inner.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errors.New("not JSON")
		}
		switch t := t.(type) {
		case json.Delim:
			switch t {
			case '{':
				open, name = append(open, map[string]bool{}), true
				continue
			case '[':
				open, name = append(open, nil), false
				continue
			default:
				open = open[:len(open)-1]
			}
		case string:
			if name {
				top := open[len(open)-1]
				if t = strings.ToLower(t); top[t] {
					return errors.New("a name is given twice")
				}
				top[t], name = true, false
				continue
			}
		}
		name = len(open) > 0 && open[len(open)-1] != nil
	}
}
