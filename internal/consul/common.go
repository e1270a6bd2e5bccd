package consul

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
)

const (
	maxCommonValue = 256 << 10 // bytes; Consul takes 512 KiB
	lockPoll       = time.Second
)

// Common is what the nodes of a cluster have in common beside the directory: a few small values by name, and locks. It
// is no place for anything that a request waits for. Values are not locked by any node and outlive them all.
//
//	B/common/<key>   value
//	B/lock/<name>    held by the Consul session of a node, and free again when that ends
//
// All methods are safe for concurrent use and ask Consul each time; their errors are those of Consul being away or
// refusing.
type Common struct{ d *Directory }

// Common returns what this node shares with the others.
func (d *Directory) Common() *Common { return &Common{d} }

func (c *Common) key(name string) (string, error) {
	name = strings.Trim(name, "/")
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." {
			return "", fmt.Errorf("key %q: want names joined by slashes", name)
		}
	}
	return c.d.base + "common/" + name, nil
}

// Get returns a value, and whether there is one.
func (c *Common) Get(ctx context.Context, name string) ([]byte, bool, error) {
	key, err := c.key(name)
	if err != nil {
		return nil, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*writeTime)
	defer cancel()
	pair, _, err := c.d.readClient.KV().Get(key, readOptions(ctx))
	if err != nil || pair == nil {
		return nil, false, err
	}
	return pair.Value, true, nil
}

// Put writes a value of at most 256 KiB.
func (c *Common) Put(ctx context.Context, name string, value []byte) error {
	key, err := c.key(name)
	if err != nil {
		return err
	}
	if len(value) > maxCommonValue {
		return fmt.Errorf("%s has %d bytes, and nodes share at most %d", name, len(value), maxCommonValue)
	}
	if err := c.d.budget.Wait(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*writeTime)
	defer cancel()
	_, err = c.d.writeClient.KV().Put(&api.KVPair{Key: key, Value: value}, writeOptions(ctx))
	return err
}

// Delete removes a key and all keys below it, if there are any.
func (c *Common) Delete(ctx context.Context, name string) error {
	key, err := c.key(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*writeTime)
	defer cancel()
	_, err = c.d.writeClient.KV().Delete(key, writeOptions(ctx))
	_, below := c.d.writeClient.KV().DeleteTree(key+"/", writeOptions(ctx))
	return errors.Join(err, below)
}

// List returns the keys below a key, at any depth.
func (c *Common) List(ctx context.Context, name string) ([]string, error) {
	key, err := c.key(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*writeTime)
	defer cancel()
	keys, _, err := c.d.readClient.KV().Keys(key+"/", "", readOptions(ctx))
	for i := range keys {
		keys[i] = strings.TrimPrefix(keys[i], c.d.base+"common/")
	}
	return keys, err
}

// Lock waits until no node holds the lock of this name, this one included, and takes it. The lock is lost with this
// node's session, so what it guards must bear to be done twice.
func (c *Common) Lock(ctx context.Context, name string) error {
	key := c.lockKey(name)
	for {
		taken, err := c.acquire(ctx, key)
		if taken || err != nil {
			return err
		}
		if !sleep(ctx, c.d.jitter(lockPoll)) {
			return fmt.Errorf("wait for the lock %q of the cluster: %w", name, ctx.Err())
		}
	}
}

func (c *Common) lockKey(name string) string { return c.d.base + "lock/" + url.PathEscape(name) }

// acquire takes a lock that is free. Whoever holds a lock may acquire it again, also one whose taking or giving back was not
// answered; that two of our own goroutines do not hold it at once is for claim to see to.
func (c *Common) acquire(ctx context.Context, key string) (taken bool, err error) {
	session := *c.d.session.Load()
	if session == "" || !c.d.claim(key) {
		return false, nil // until Consul has given us one, or whoever has it gives it back
	}
	defer func() {
		if !taken {
			c.d.disclaim(key)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, 2*writeTime)
	defer cancel()
	taken, _, _, err = c.d.writeClient.Txn().Txn(api.TxnOps{
		{KV: &api.KVTxnOp{Verb: api.KVLock, Key: key, Value: []byte(c.d.node.ID), Session: session}},
	}, readOptions(ctx))
	if code := status(err); code != 0 && code < 500 && code != http.StatusForbidden { // to be denied it is for good
		return false, nil // the session has just ended; there will be another
	}
	return taken && err == nil, err
}

// Unlock gives a lock back. One of which Consul does not hear is given back some time later.
func (c *Common) Unlock(ctx context.Context, name string) error {
	key := c.lockKey(name)
	defer c.d.disclaim(key)
	return c.giveBack(ctx, key)
}

// giveBack deletes a lock if this node holds it.
func (c *Common) giveBack(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*writeTime)
	defer cancel()
	_, _, _, err := c.d.writeClient.Txn().Txn(api.TxnOps{
		{KV: &api.KVTxnOp{Verb: api.KVCheckSession, Key: key, Session: *c.d.session.Load()}},
		{KV: &api.KVTxnOp{Verb: api.KVDelete, Key: key}},
	}, readOptions(ctx))
	return err
}

// claim notes that a goroutine of this node takes a lock or holds it, unless another one does.
func (d *Directory) claim(key string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.claimed[key] {
		return false
	}
	d.claimed[key] = true
	return true
}

func (d *Directory) disclaim(key string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.claimed, key)
}

// findLocks adds the locks that nobody will give back: those of this node that none of its goroutines has, since Consul did not
// answer when they were taken or given back, and those of no session.
func (d *Directory) findLocks(ctx context.Context, found map[string]func(context.Context) error) error {
	pairs, _, err := d.readClient.KV().List(d.base+"lock/", readOptions(ctx))
	if err != nil {
		return fmt.Errorf("list the locks: %w", err)
	}
	session := *d.session.Load()
	for _, pair := range pairs {
		switch {
		case pair.Session == "":
			found[pair.Key] = func(ctx context.Context) error { return d.removeUnlocked(ctx, pair.Key) }
		case pair.Session == session && d.claim(pair.Key):
			d.disclaim(pair.Key)
			found[pair.Key] = func(ctx context.Context) error {
				if !d.claim(pair.Key) {
					return nil
				}
				defer d.disclaim(pair.Key)
				return d.Common().giveBack(ctx, pair.Key)
			}
		}
	}
	return nil
}
