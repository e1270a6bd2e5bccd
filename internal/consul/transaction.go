package consul

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
)

// errLockDelay says that a key was let go a moment ago by a session that died.
var errLockDelay = errors.New("key is in its lock delay")

// heldError says that a key is locked by another session.
type heldError struct{ key string }

// Error names the key.
func (e *heldError) Error() string { return "key " + e.key + " is held by another session" }

// transaction is a set of writes that happen together or not at all.
type transaction struct {
	d       *Directory
	session string
	ops     api.TxnOps
	bytes   int
}

// lock writes a key that vanishes with the session.
func (t *transaction) lock(key string, value []byte) {
	t.ops = append(t.ops, &api.TxnOp{KV: &api.KVTxnOp{Verb: api.KVLock, Key: key, Value: value, Session: t.session}})
	t.bytes += len(value)
}

func (t *transaction) deleteTree(prefix string) {
	t.ops = append(t.ops, &api.TxnOp{KV: &api.KVTxnOp{Verb: api.KVDeleteTree, Key: prefix}})
}

// send sends the transaction. It returns errLost, errLockDelay or a *heldError where Consul said so; another error
// leaves open whether it was done.
func (t *transaction) send(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	m := t.d.metrics
	m.txnOps.Observe(float64(len(t.ops)))
	m.txnBytes.Observe(float64(t.bytes))
	began := time.Now()
	done, answer, _, err := t.d.writeClient.Txn().Txn(t.ops, readOptions(ctx))
	m.txnTime.Observe(time.Since(began).Seconds())
	switch {
	case err != nil:
		m.txns.WithLabelValues("error").Inc()
		return fmt.Errorf("transaction of %d writes: %w", len(t.ops), err)
	case done:
		m.txns.WithLabelValues("done").Inc()
		return nil
	}
	m.txns.WithLabelValues("conflict").Inc()
	return t.conflict(answer.Errors)
}

// conflict returns why Consul did not do the transaction. Consul tells it by text only.
func (t *transaction) conflict(problems api.TxnErrors) error {
	var texts []string
	var held *heldError
	for _, p := range problems {
		switch {
		case strings.Contains(p.What, "invalid session"):
			return fmt.Errorf("transaction: %s: %w", p.What, errLost)
		case strings.Contains(p.What, "lock delay"):
			return fmt.Errorf("transaction: %s: %w", p.What, errLockDelay)
		case strings.Contains(p.What, "already held") && p.OpIndex >= 0 && p.OpIndex < len(t.ops) && held == nil:
			held = &heldError{t.ops[p.OpIndex].KV.Key}
		}
		texts = append(texts, p.What)
	}
	if held != nil {
		return held
	}
	return fmt.Errorf("transaction: consul refused it: %s", strings.Join(texts, "; "))
}
