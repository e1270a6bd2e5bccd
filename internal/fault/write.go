package fault

import (
	"encoding/json"
	"html/template"
	"net/http"
	"strconv"
	"strings"
)

// Header is the response header that carries the code of a fault. It tells our error answers from a service's.
const Header = "Piko-Error"

// retryAfter is the number of seconds a client is asked to wait when trying again can help.
const retryAfter = "1"

// problem is an RFC 9457 problem. Error is our extension member: the text that classic clients know.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Code   string `json:"code"`
	Error  string `json:"error"`
}

// page must not load anything: it is served under the service's own origin, by somebody who is not the service.
var page = template.Must(template.New("fault").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{.Status}} {{.Title}}</title>
<style>body{font:1rem/1.5 system-ui,sans-serif;max-width:38em;margin:4em auto;padding:0 1em}code{color:#666}</style>
<h1>{{.Title}}</h1>
<p>{{.Meaning}}</p>{{if .Detail}}
<p>{{.Detail}}</p>{{end}}
<p>{{.Remedy}}</p>
<p><code>{{.Code}}</code></p>
</html>
`))

// Write answers the request with the fault: status, Piko-Error header and body. The body is an RFC 9457 problem in
// JSON, or a short page when the request prefers HTML. The detail is optional and goes out as it is given: it must not
// hold anything secret, nor what the client sent. Headers already set on w that describe another body are removed.
// Write must come before anything else was written to w; errors of the connection are not reported, as nobody could act
// on them.
func Write(w http.ResponseWriter, r *http.Request, f Fault, detail string) {
	h := w.Header()
	for _, name := range []string{"Content-Encoding", "Content-Range", "Etag", "Last-Modified", "Trailer", "Link"} {
		h.Del(name)
	}
	h.Set(Header, f.Code)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	switch f.Status {
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		h.Set("Retry-After", retryAfter)
	case http.StatusUnauthorized:
		h.Set("Www-Authenticate", challenge(f))
	case http.StatusMethodNotAllowed:
		h.Set("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
	}
	body, contentType := body(r, f, detail)
	h.Set("Content-Type", contentType)
	if strings.HasPrefix(contentType, "text/html") {
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(f.Status)
	if r.Method != http.MethodHead {
		// The client may be gone; there is nobody left to tell.
		_, _ = w.Write(body)
	}
}

func body(r *http.Request, f Fault, detail string) ([]byte, string) {
	if prefersHTML(r) {
		var b strings.Builder
		err := page.Execute(&b, struct {
			Fault
			Detail string
		}{f, detail})
		if err == nil {
			return []byte(b.String()), "text/html; charset=utf-8"
		}
	}
	b, err := json.Marshal(problem{
		Type: "urn:piko:error:" + f.Code, Title: f.Title, Status: f.Status, Detail: detail,
		Code: f.Code, Error: f.Classic,
	})
	if err != nil {
		// Six strings and a number always marshal; should that ever change, the classic member is what clients need.
		b = []byte(`{"error":` + strconv.Quote(f.Classic) + `}`)
	}
	return append(b, '\n'), "application/problem+json"
}

// prefersHTML reports whether text/html is named by the request, which browsers do and programs do not.
func prefersHTML(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	for _, line := range r.Header["Accept"] {
		for part := range strings.SplitSeq(line, ",") {
			media, params, _ := strings.Cut(part, ";")
			if strings.EqualFold(strings.TrimSpace(media), "text/html") {
				return !refused(params)
			}
		}
	}
	return false
}

// refused reports whether the parameters of an Accept element give it the weight 0 (RFC 9110, 12.4.2).
func refused(params string) bool {
	for param := range strings.SplitSeq(params, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(param), "=")
		if strings.EqualFold(name, "q") {
			return strings.Trim(value, "0.") == ""
		}
	}
	return false
}

// challenge is the WWW-Authenticate value of a 401 (RFC 6750, 3): no error attribute when no credential was sent.
func challenge(f Fault) string {
	const realm = `Bearer realm="piko"`
	switch f.Code {
	case MissingAuthorization.Code, UnknownTenant.Code:
		return realm
	case InvalidAuthorization.Code, UnsupportedAuthType.Code:
		return realm + `, error="invalid_request"`
	case EndpointNotPermitted.Code:
		return realm + `, error="insufficient_scope"`
	default:
		return realm + `, error="invalid_token"`
	}
}
