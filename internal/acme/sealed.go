package acme

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
)

// Shared is where the nodes of a cluster keep values in common. Keys are paths of names joined by slashes. Its methods
// must be safe for concurrent use.
type Shared interface {
	// Get returns a value, and whether there is one.
	Get(ctx context.Context, key string) (value []byte, found bool, err error)
	// Put writes a value of at most 256 KiB.
	Put(ctx context.Context, key string, value []byte) error
	// Delete removes a key and all keys below it, if there are any.
	Delete(ctx context.Context, key string) error
	// List returns the keys below a key, at any depth.
	List(ctx context.Context, key string) ([]string, error)
	// Lock waits until no other node holds the lock of this name. It is lost when this node dies.
	Lock(ctx context.Context, name string) error
	// Unlock gives a lock back.
	Unlock(ctx context.Context, name string) error
}

// sealed keeps certmagic's files in what the nodes share. Private keys lie there, and who may read the directory of a
// cluster is not who may be its clients' server: each value is encrypted with AES-256-GCM under a key made of the
// cluster's secret, and bound to its name, so that values can't be exchanged for each other.
type sealed struct {
	shared func() Shared
	aead   cipher.AEAD
}

const keyBytes = 32

func newSealed(shared func() Shared, secret string) *sealed {
	key, err := hkdf.Key(sha256.New, []byte(secret), nil, "piko acme storage v1", keyBytes)
	if err != nil {
		panic(err) // only for a length that no hash gives
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // only for a key of another length
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // only for a block of another length
	}
	return &sealed{shared, aead}
}

// header of a value: a version, and when it was written, in seconds. The time is authenticated, not secret.
const (
	version     = 1
	headerBytes = 1 + 8
)

func (s *sealed) Store(ctx context.Context, key string, value []byte) error {
	out := make([]byte, headerBytes, headerBytes+len(value)+s.aead.Overhead())
	out[0] = version
	binary.BigEndian.PutUint64(out[1:], uint64(time.Now().Unix()))      //nolint:gosec // after 1970
	out = s.aead.Seal(out, nil, value, s.bound(key, out[:headerBytes])) //nolint:gosec // it draws its own nonce
	return s.shared().Put(ctx, key, out)
}

func (s *sealed) Load(ctx context.Context, key string) ([]byte, error) {
	value, _, err := s.open(ctx, key)
	return value, err
}

func (s *sealed) open(ctx context.Context, key string) ([]byte, time.Time, error) {
	box, found, err := s.shared().Get(ctx, key)
	if err != nil {
		return nil, time.Time{}, err
	}
	if !found {
		return nil, time.Time{}, fmt.Errorf("%s: %w", key, fs.ErrNotExist)
	}
	if len(box) < headerBytes || box[0] != version {
		return nil, time.Time{}, fmt.Errorf("%s: is not what a node wrote", key)
	}
	value, err := s.aead.Open(nil, nil, box[headerBytes:], s.bound(key, box[:headerBytes]))
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("%s: was not written under this cluster.secret", key)
	}
	return value, time.Unix(int64(binary.BigEndian.Uint64(box[1:])), 0), nil //nolint:gosec // authenticated
}

func (s *sealed) bound(key string, header []byte) []byte { return slices.Concat(header, []byte(key)) }

func (s *sealed) Delete(ctx context.Context, key string) error { return s.shared().Delete(ctx, key) }

func (s *sealed) Exists(ctx context.Context, key string) bool {
	if _, found, err := s.shared().Get(ctx, key); err != nil || found {
		return err == nil
	}
	below, err := s.shared().List(ctx, key)
	return err == nil && len(below) > 0
}

func (s *sealed) List(ctx context.Context, dir string, recursive bool) ([]string, error) {
	keys, err := s.shared().List(ctx, dir)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s: %w", dir, fs.ErrNotExist)
	}
	dir = strings.Trim(dir, "/")
	seen := map[string]bool{}
	for _, key := range keys {
		rest := strings.TrimPrefix(strings.TrimPrefix(key, dir), "/")
		for i, part := 0, ""; i < len(rest); { // each directory on the way counts as an entry
			part, _, _ = strings.Cut(rest[i:], "/")
			i += len(part) + 1
			seen[path.Join(dir, rest[:i-1])] = true
			if !recursive {
				break
			}
		}
	}
	out := make([]string, 0, len(seen))
	for key := range seen {
		out = append(out, key)
	}
	slices.Sort(out)
	return out, nil
}

func (s *sealed) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	value, written, err := s.open(ctx, key)
	if err == nil {
		return certmagic.KeyInfo{Key: key, Modified: written, Size: int64(len(value)), IsTerminal: true}, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		if below, listing := s.shared().List(ctx, key); listing == nil && len(below) > 0 {
			return certmagic.KeyInfo{Key: key}, nil
		}
	}
	return certmagic.KeyInfo{}, err
}

func (s *sealed) Lock(ctx context.Context, name string) error   { return s.shared().Lock(ctx, name) }
func (s *sealed) Unlock(ctx context.Context, name string) error { return s.shared().Unlock(ctx, name) }

// String names the storage in the log without its secret.
func (s *sealed) String() string { return "shared by the nodes" }
