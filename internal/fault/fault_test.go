package fault

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestCodesAreUniqueSortedAndComplete(t *testing.T) {
	shape := regexp.MustCompile(`^PIKO-E[1-6]\d{3}$`)
	all := All()
	for i, f := range all {
		if !shape.MatchString(f.Code) {
			t.Errorf("code %q: want PIKO-E and four digits", f.Code)
		}
		if i > 0 && all[i-1].Code >= f.Code {
			t.Errorf("%s stands after %s", f.Code, all[i-1].Code)
		}
		if f.Status < 400 || f.Status > 599 || http.StatusText(f.Status) == "" {
			t.Errorf("%s: status %d is no error", f.Code, f.Status)
		}
		if f.Classic == "" || f.Title == "" || !strings.HasSuffix(f.Meaning, ".") || f.Remedy == "" {
			t.Errorf("%s: a text is missing or no sentence: %+v", f.Code, f)
		}
		if got, ok := ByCode(f.Code); !ok || got != f {
			t.Errorf("ByCode(%s) = %+v, %v", f.Code, got, ok)
		}
	}
	if _, ok := ByCode("PIKO-E0000"); ok {
		t.Error("ByCode knows a code that does not exist")
	}
}

// A fault that is declared but missing from All could not be explained.
func TestAllHoldsEveryDeclaredFault(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "catalogue.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	declared := 0
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok {
			declared += len(v.Names)
		}
		return true
	})
	if declared != len(All()) {
		t.Errorf("catalogue.go declares %d faults, All returns %d", declared, len(All()))
	}
}

// The texts that clients compare, as the tunnel protocol lists them.
func TestClassicTexts(t *testing.T) {
	for text, f := range map[string]Fault{
		"400 missing endpoint id":    MissingEndpoint,
		"502 no available upstreams": NoUpstreams,
		"502 upstream unreachable":   UpstreamUnreachable,
		"504 upstream timeout":       UpstreamTimeout,
		"401 missing authorization":  MissingAuthorization,
		"401 invalid authorization":  InvalidAuthorization,
		"401 unsupported auth type":  UnsupportedAuthType,
		"401 invalid token":          InvalidToken,
		"401 expired token":          ExpiredToken,
		"401 unknown tenant":         UnknownTenant,
		"401 endpoint not permitted": EndpointNotPermitted,
	} {
		rec := httptest.NewRecorder()
		Write(rec, httptest.NewRequest("GET", "/", nil), f, "")
		var got struct{ Error string }
		if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil {
			t.Fatalf("%s: %v", f.Code, err)
		}
		if have := rec.Result().Status[:4] + got.Error; have != text {
			t.Errorf("%s: answer %q, want %q", f.Code, have, text)
		}
	}
}

func TestWriteProblem(t *testing.T) {
	rec := httptest.NewRecorder()
	rec.Header().Set("Content-Encoding", "gzip")
	rec.Header().Set("Link", "</style.css>")
	Write(rec, httptest.NewRequest("GET", "/", nil), Draining, `say "no"`)
	want := map[string]string{
		"Piko-Error": "PIKO-E5001", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Retry-After": "1",
		"Content-Type": "application/problem+json", "Content-Encoding": "", "Link": "",
	}
	for name, value := range want {
		if got := rec.Header().Get(name); got != value {
			t.Errorf("%s: %q, want %q", name, got, value)
		}
	}
	var got problem
	if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Status != 503 || got.Detail != `say "no"` || got.Code != "PIKO-E5001" || got.Error != "draining" || got.Title == "" {
		t.Errorf("problem %+v", got)
	}
}

func TestWriteChoosesHTMLForBrowsersOnly(t *testing.T) {
	const browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
	for _, c := range []struct {
		method, accept string
		html           bool
	}{
		{"GET", browser, true},
		{"GET", "application/json, TEXT/HTML ; q=0.1", true},
		{"GET", "*/*", false},
		{"GET", "", false},
		{"GET", "text/html;q=0", false},
		{"GET", "text/html; q=0.000, */*", false},
		{"GET", "text/htmlx", false},
		{"POST", browser, false},
	} {
		r := httptest.NewRequest(c.method, "/", nil)
		r.Header.Set("Accept", c.accept)
		rec := httptest.NewRecorder()
		Write(rec, r, NoUpstreams, "<script>")
		html := strings.HasPrefix(rec.Header().Get("Content-Type"), "text/html")
		if html != c.html {
			t.Errorf("%s with Accept %q: html %v, want %v", c.method, c.accept, html, c.html)
		}
		if html && (strings.Contains(rec.Body.String(), "<script>") || rec.Header().Get("Content-Security-Policy") == "") {
			t.Errorf("page is not safe: %s", rec.Body)
		}
	}
}

func TestWriteHeadHasNoBody(t *testing.T) {
	rec := httptest.NewRecorder()
	Write(rec, httptest.NewRequest("HEAD", "/", nil), NoUpstreams, "")
	if rec.Body.Len() != 0 || rec.Header().Get("Content-Length") == "" {
		t.Errorf("body of %d bytes, headers %v", rec.Body.Len(), rec.Header())
	}
}

func TestEvery401Challenges(t *testing.T) {
	for _, f := range All() {
		rec := httptest.NewRecorder()
		Write(rec, httptest.NewRequest("GET", "/", nil), f, "")
		if has := rec.Header().Get("WWW-Authenticate") != ""; has != (f.Status == 401) {
			t.Errorf("%s: challenge %v with status %d", f.Code, has, f.Status)
		}
		if has := rec.Header().Get("Retry-After") != ""; has != slices.Contains([]int{503, 429}, f.Status) {
			t.Errorf("%s: Retry-After %v with status %d", f.Code, has, f.Status)
		}
	}
}
