package piko

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// maxToken is the longest token in bytes that a node takes.
const maxToken = 8 << 10

// errToken marks the errors of getting a token, as opposed to those of presenting it.
var errToken = errors.New("no token to present")

// renewPause is the pause before a source that had nothing new is asked again.
const renewPause = 15 * time.Second

// TokenFile returns a [Client.TokenSource] that reads the token from a file each time it is asked, so that replacing the
// file replaces the token. White space around the token is ignored. A file that is missing, empty or longer than 8 KiB
// is an error.
func TokenFile(path string) func(ctx context.Context) (string, error) {
	return func(context.Context) (string, error) {
		f, err := os.Open(path)
		if err != nil {
			return "", fmt.Errorf("token file: %w", err)
		}
		defer func() { _ = f.Close() }()
		b, err := io.ReadAll(io.LimitReader(f, maxToken+1))
		if err != nil {
			return "", fmt.Errorf("token file: %w", err)
		}
		if len(b) > maxToken {
			return "", fmt.Errorf("token file %s: longer than %d bytes", path, maxToken)
		}
		token := strings.TrimSpace(string(b))
		if token == "" {
			return "", fmt.Errorf("token file %s: empty", path)
		}
		return token, nil
	}
}

// checkToken refuses what could not travel in a header, without repeating it.
func checkToken(token string) error {
	if len(token) > maxToken {
		return fmt.Errorf("token has %d bytes, at most %d are allowed", len(token), maxToken)
	}
	for i := range len(token) {
		if token[i] <= ' ' || token[i] >= 0x7f {
			return errors.New("token holds a blank or a byte that is not printable ASCII")
		}
	}
	return nil
}

// expiry returns when a JSON Web Token (RFC 7519, 4.1.4) expires. The signature is the node's business: a wrong date
// here costs one early or late renewal. It reports false for tokens without a date and for anything else.
func expiry(token string) (time.Time, bool) {
	_, rest, ok := strings.Cut(token, ".")
	if !ok {
		return time.Time{}, false
	}
	payload, _, ok := strings.Cut(rest, ".")
	if !ok {
		return time.Time{}, false
	}
	b, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return time.Time{}, false
	}
	var claims struct {
		Expires json.Number `json:"exp"`
	}
	if json.Unmarshal(b, &claims) != nil {
		return time.Time{}, false
	}
	seconds, err := claims.Expires.Float64()
	const year9999 = 253402300799
	if err != nil || seconds <= 0 || seconds > year9999 {
		return time.Time{}, false
	}
	return time.Unix(int64(seconds), 0), true
}

// renewIn returns how long to wait before the token should be replaced: four fifths of what is left of its life, and at
// least a second. It reports false when the token does not expire.
func renewIn(token string, now time.Time) (time.Duration, bool) {
	end, ok := expiry(token)
	if !ok {
		return 0, false
	}
	return max(end.Sub(now)*4/5, time.Second), true
}
