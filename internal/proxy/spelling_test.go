package proxy

import (
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"
)

// What a connection keeps of names from one request to the next is no more than the names.
func TestKeptNamesKeepNoHeads(t *testing.T) {
	var kept spellings
	before := heap()
	for i := range 3 * maxKeptNames { // one more name in each head
		name := fmt.Sprintf("X-Name-%d", i)
		head := name + strings.Repeat(" ", 1<<20)
		for j := range i {
			kept.of(j, fmt.Sprintf("X-Name-%d", j))
		}
		if have := kept.of(i, head[:len(name)]); have.canonical != name {
			t.Fatal(have)
		}
	}
	kept.of(0, strings.Repeat("x", 1<<20))
	if grown := heap() - before; grown > 1<<20 {
		t.Errorf("%d bytes are kept", grown)
	}
	runtime.KeepAlive(kept)
}

func TestKeptNamesAreThoseOfTheRequest(t *testing.T) {
	var kept spellings
	long := "x-" + strings.Repeat("y", maxKeptName)
	for _, names := range [][]string{
		{"te", "connection"}, {"Te", "upgrade"}, {"connection", "te", "cookie"}, {long, "te"}, {"connection"}, {"Connection", long, "x_y"},
	} {
		for i, name := range names {
			s := kept.of(i, name)
			if want := http.CanonicalHeaderKey(name); s.raw != name || s.canonical != want || s.trait != traitOf(want) {
				t.Errorf("%q in %q: %+v", name, names, s)
			}
		}
	}
}

// What is said of a name once and for all must hold under all settings.
func TestOrdinaryFieldsAreThoseThatAlwaysGoOn(t *testing.T) {
	names := []string{
		"Accept", "Cookie", "Traceparent", "Pragma", "Content-Type", "X-Request-Id", "Authorization", "X-Piko-Authorization", "Max-Forwards",
		"Connection", "Te", "Upgrade", "Expect", "Host", "Proxy", "Forwarded", "X-Forwarded-For", "X-Forwarded-Port", "X-Real-Ip",
		"X_forwarded_for", "X_piko_endpoint", "A_b", "Keep-Alive", "Content-Length", "Transfer-Encoding", "Http2-Settings", "X-Piko-Endpoint",
		"a b", "",
	}
	for _, name := range names {
		always := true
		for _, method := range []string{http.MethodGet, http.MethodOptions} {
			for _, u := range []underscores{dropUnderscores, rejectUnderscores, allowUnderscores} {
				for _, trusted := range []bool{false, true} {
					for _, bearer := range []bool{false, true} {
						x := &exchange{r: &http.Request{Method: method}, settings: &Settings{Underscores: u}, bearer: bearer, maxForwards: 3}
						x.origin.trusted = trusted
						always = always && x.keepsField(name)
					}
				}
			}
		}
		// One that always goes on might be called something else, which only costs time.
		if ord := traitOf(name)&ordinary != 0; ord && !always || always && !ord && !strings.Contains(name, "_") {
			t.Errorf("%q is ordinary: %t; it always goes on: %t", name, ord, always)
		}
	}
}
