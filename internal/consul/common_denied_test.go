package consul

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pikoproxy/piko/internal/config"
)

// Whoever waits for a lock that Consul will never let it have must hear why, or certificates are never ordered and nobody
// learns that it is for a rule of the ACL.
func TestALockThatIsDeniedIsAnError(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "Permission denied: token lacks permission 'key:write'", http.StatusForbidden)
	}))
	defer s.Close()
	o := plainOptions()
	o.Settings.Address = config.List{s.URL}
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer d.closeIdle()
	session := "4a1a5a0e-0000-0000-0000-000000000000"
	d.session.Store(&session)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := d.Common().Lock(ctx, "x"); err == nil || !strings.Contains(err.Error(), "Permission denied") {
		t.Errorf("Lock: %v, want what Consul said", err)
	}
}
