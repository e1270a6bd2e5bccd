package server_test

import (
	"strings"
	"testing"
)

// The faults of others in finding the end of a request, and of its head.

func TestCVE_2025_22871_BareLFInChunkLines(t *testing.T) {
	n, r := exposed(t, nil)
	n.refused(r, postChunked+"5\nhello\r\n0\r\n\r\n", "400")
	n.refused(r, postChunked+"5\r\nhello\n0\r\n\r\n", "400")
	n.refused(r, postChunked+"5;a\nb\r\nhello\r\n0\r\n\r\n", "400")
}

func TestCVE_2023_39326_ChunkExtensionsWithoutEnd(t *testing.T) {
	n, r := exposed(t, nil)
	n.refused(r, postChunked+"5;"+strings.Repeat("x", 64<<10)+"\r\nhello\r\n0\r\n\r\n", "400")
	if strings.Contains(r.text(), "xxxx") {
		t.Error("an extension reached the service")
	}
}

func TestCVE_2022_1705_TransferEncodingThatIsNone(t *testing.T) {
	n, r := exposed(t, nil)
	for _, te := range []string{"\x0bchunked", "chunked\x00", "xchunked", "chunked, identity", "identity", "chunked\r\nTransfer-Encoding: chunked"} {
		n.refused(r, "POST / HTTP/1.1\r\nHost: e.piko.test\r\nContent-Length: 5\r\nTransfer-Encoding: "+te+"\r\n\r\n0\r\n\r\n", "400", "501")
	}
}

func TestCVE_2021_40346_LongFieldNameBesideContentLength(t *testing.T) {
	n, r := exposed(t, nil)
	n.refused(r, "POST / HTTP/1.1\r\nHost: e.piko.test\r\nContent-Length0"+strings.Repeat("a", 255)+":\r\nContent-Length: 5\r\nContent-Length: 60\r\n\r\nhello", "400")
}

func TestCVE_2023_25725_EmptyFieldName(t *testing.T) {
	n, r := exposed(t, nil)
	n.refused(r, "POST / HTTP/1.1\r\nHost: e.piko.test\r\n: x\r\nContent-Length: 50\r\n\r\n", "400")
}

func TestCVE_2023_40225_EmptyContentLength(t *testing.T) {
	n, r := exposed(t, nil)
	n.refused(r, "POST / HTTP/1.1\r\nHost: e.piko.test\r\nContent-Length:\r\n\r\n", "400")
	n.refused(r, "POST / HTTP/1.1\r\nHost: e.piko.test\r\nContent-Length: \r\nContent-Length: 40\r\n\r\n", "400")
}

func TestCVE_2023_45539_FragmentInTheTarget(t *testing.T) {
	n, r := exposed(t, nil)
	n.refused(r, "GET /index.html#.png HTTP/1.1\r\nHost: e.piko.test\r\n\r\n", "400")
}

func TestCVE_2026_73564_LengthBeyondAnyNumber(t *testing.T) {
	n, r := exposed(t, nil)
	for _, length := range []string{"18446744073709551621", "9223372036854775808", "-1", "+5", "0x5", "5, 5", "5;5"} {
		n.refused(r, "POST / HTTP/1.1\r\nHost: e.piko.test\r\nContent-Length: "+length+"\r\n\r\nhello", "400", "413")
	}
	n.refused(r, postChunked+"10000000000000005\r\nhello\r\n0\r\n\r\n", "400")
}

func TestCVE_2024_24791_ExpectContinueLeavesTheBodyBehind(t *testing.T) {
	n, r := exposed(t, nil)
	body := "GET /hidden HTTP/1.1\r\nHost: e.piko.test\r\n\r\n"
	text := n.exchange("POST / HTTP/1.1\r\nHost: e.piko.test\r\nExpect: 100-continue\r\nContent-Length: 43\r\n\r\n" + body)
	// The service answers without reading the body; what follows must be that body, and never a request.
	if !strings.HasPrefix(strings.TrimPrefix(statuses(text), "100 "), "200") {
		t.Errorf("answers are %q", statuses(text))
	}
	if strings.Contains(r.served(), "/hidden") {
		t.Errorf("a body was taken for a request:\n%s", r.text())
	}
	if got := n.exchange(getWith("X-After: 1")); statuses(got) != "200" {
		t.Errorf("a later request is answered %q", statuses(got))
	}
}

func TestCVE_2026_71324_ConnectAndTrace(t *testing.T) {
	n, r := exposed(t, nil)
	n.refused(r, "CONNECT e.piko.test:80 HTTP/1.1\r\nHost: e.piko.test:80\r\n\r\n", "405", "400")
	n.refused(r, "TRACE / HTTP/1.1\r\nHost: e.piko.test\r\nConnection: close\r\n\r\n", "405")
}

func TestCVE_2026_40303_CookieWithoutEnd(t *testing.T) {
	n, r := exposed(t, nil)
	n.refused(r, getWith("Cookie: "+strings.Repeat("a", 1<<20)), "431", "")
}

func TestCVE_2026_42507_NoFieldOfAClientBreaksALineOfTheLog(t *testing.T) {
	n, r := exposed(t, nil)
	n.refused(r, getWith("X: a\rlevel=fatal msg=forged"), "400")
	n.refused(r, "GET / HTTP/1.1\r\nHost: e.piko.test\r\nBad \x1b[2J\x85 Name: x\r\n\r\n", "400")
	for _, e := range n.log.AllEntries() {
		line, err := e.String()
		if err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(strings.TrimSuffix(line, "\n"), "\n\r\x1b\u0085") {
			t.Errorf("a line with control characters: %q", line)
		}
	}
}
