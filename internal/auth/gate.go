package auth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// TenantID is the header in which an agent says whose it is. It only selects the keys: the token must hold under them.
const TenantID = "X-Piko-Tenant-Id"

// Gate authenticates those who come to one listener, by the keys of their tenant if they name one, else by the
// listener's own. The zero value lets everybody in.
type Gate struct {
	// Own verifies tokens of those who name no tenant; nil asks for none, unless there are tenants.
	Own *Verifier
	// Tenants verify the tokens of each tenant by its id.
	Tenants map[string]*Verifier
}

// Authenticate returns who sent a request with this header; see [Verifier.Authenticate].
func (g *Gate) Authenticate(ctx context.Context, h http.Header) (*Identity, error) {
	verifier, tenant, err := g.verifier(h)
	if err != nil {
		return nil, err
	}
	id, err := verifier.Authenticate(ctx, h)
	return id.of(tenant), err
}

// AuthenticateAs returns who sent a request with this header, by the keys of a tenant that is known otherwise.
func (g *Gate) AuthenticateAs(ctx context.Context, tenant string, h http.Header) (*Identity, error) {
	v := g.Tenants[tenant]
	if v == nil {
		return nil, ErrUnknownTenant
	}
	id, err := v.Authenticate(ctx, h)
	return id.of(tenant), err
}

// Renew verifies the token that the bearer of an older one sends in its place. It must hold under the same keys.
func (g *Gate) Renew(ctx context.Context, old *Identity, token string) (*Identity, error) {
	verifier, tenant := g.Own, ""
	if old != nil && old.Tenant != "" {
		verifier, tenant = g.Tenants[old.Tenant], old.Tenant
		if verifier == nil {
			return nil, ErrUnknownTenant
		}
	}
	if verifier == nil {
		return nil, nil //nolint:nilnil // no tokens are asked for
	}
	id, err := verifier.Verify(ctx, token)
	return id.of(tenant), err
}

// Ready returns nil when every verifier has its keys.
func (g *Gate) Ready() error {
	errs := []error{g.Own.Ready()}
	for tenant, v := range g.Tenants {
		if err := v.Ready(); err != nil {
			errs = append(errs, fmt.Errorf("tenant %q: %w", tenant, err))
		}
	}
	return errors.Join(errs...)
}

func (g *Gate) verifier(h http.Header) (*Verifier, string, error) {
	lines := h[TenantID]
	switch {
	case len(lines) > 1:
		return nil, "", fmt.Errorf("%w: it is named %d times", ErrUnknownTenant, len(lines))
	case len(lines) == 0 || lines[0] == "":
		if g.Own == nil && len(g.Tenants) > 0 {
			return nil, "", fmt.Errorf("%w: none is named", ErrUnknownTenant)
		}
		return g.Own, "", nil
	}
	v, known := g.Tenants[lines[0]]
	if !known || v == nil {
		return nil, "", ErrUnknownTenant
	}
	return v, lines[0], nil
}

// of returns the identity as one of a tenant. The cached identity is shared, so it is copied, not changed.
func (i *Identity) of(tenant string) *Identity {
	if i == nil || tenant == "" {
		return i
	}
	c := *i
	c.Tenant = tenant
	return &c
}
