package corpus

import "strings"

// Reply is what a service may send to make two readers of it disagree, or to make us work for nothing.
type Reply struct {
	Name, Text string
	Want       int  // the status that the client sees
	Broken     bool // the body must not look complete
	Reuse      bool // the stream may carry another exchange
}

// Replies are all of them, to a request that has a body of no bytes. The first four are good ones.
//
//nolint:gochecknoglobals // a table
var Replies = []Reply{
	{"good", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, false, true},
	{"good chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 200, false, true},
	{"no reason", "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", 200, false, true},
	{"empty reason", "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok", 200, false, true},
	{"length and chunked", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 502, false, false},
	{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", 502, false, false},
	{"the same length twice", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", 502, false, false},
	{"list of lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", 502, false, false},
	{"negative length", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok", 502, false, false},
	{"signed length", "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", 502, false, false},
	{"hex length", "HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nok", 502, false, false},
	{"empty length", "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok", 502, false, false},
	{"overflowing length", "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551618\r\n\r\nok", 502, false, false},
	{"coding gzip", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 502, false, false},
	{"coding twice", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 502, false, false},
	{"coding with VT", "HTTP/1.1 200 OK\r\nTransfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n", 502, false, false},
	{"chunked in 1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 502, false, false},
	{"status 99", "HTTP/1.1 99 No\r\nContent-Length: 2\r\n\r\nok", 502, false, false},
	{"status 099", "HTTP/1.1 099 No\r\nContent-Length: 2\r\n\r\nok", 502, false, false},
	{"status 1000", "HTTP/1.1 1000 No\r\nContent-Length: 2\r\n\r\nok", 502, false, false},
	{"status 2OO", "HTTP/1.1 2OO OK\r\nContent-Length: 2\r\n\r\nok", 502, false, false},
	{"HTTP/0.9", "<html>ok</html>", 502, false, false},
	{"HTTP/2.0", "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 502, false, false},
	{"HTTP/1.2", "HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nok", 502, false, false},
	{"TLS alert", "\x15\x03\x01\x00\x02\x02\x46", 502, false, false},
	{"LF in status line", "HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok", 502, false, false},
	{"LF in field", "HTTP/1.1 200 OK\r\nX: a\nContent-Length: 2\r\n\r\nok", 502, false, false},
	{"LF LF", "HTTP/1.1 200 OK\r\nContent-Length: 2\n\nok", 502, false, false},
	{"CR in value", "HTTP/1.1 200 OK\r\nX: a\rContent-Length: 3\r\nContent-Length: 2\r\n\r\nok", 502, false, false},
	{"NUL in value", "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\nok", 502, false, false},
	{"NUL in reason", "HTTP/1.1 200 O\x00K\r\nContent-Length: 2\r\n\r\nok", 502, false, false},
	{"folded line", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok", 502, false, false},
	{"space before colon", "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok", 502, false, false},
	{"no colon", "HTTP/1.1 200 OK\r\nContent-Length 2\r\n\r\nok", 502, false, false},
	{"empty name", "HTTP/1.1 200 OK\r\n: 2\r\n\r\nok", 502, false, false},
	{"header of 70 KiB", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 70<<10) + "\r\nContent-Length: 2\r\n\r\nok", 502, false, false},
	{"endless header", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: a\r\n", 20000), 502, false, false},
	{"100 informational", strings.Repeat("HTTP/1.1 102 Wait\r\n\r\n", 100) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 502, false, false},
	{"unasked switch", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 502, false, false},
	{"half a header", "HTTP/1.1 200 OK\r\nContent-Le", 502, false, false},
	{"connection names 100 fields", "HTTP/1.1 200 OK\r\nConnection: " + strings.Repeat("a, ", 100) + "b\r\n\r\n", 502, false, false},
	{"204 with body", "HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\nok", 204, false, false},
	{"304 with body", "HTTP/1.1 304 No\r\nContent-Length: 2\r\n\r\nok", 304, false, false},
	{"bytes behind the body", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison", 200, false, false},
	{"short body", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok", 200, true, false},
	{"chunk size is no number", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n", 200, true, false},
	{"chunk size with 0x", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\nok\r\n0\r\n\r\n", 200, true, false},
	{"chunk size negative", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nok\r\n0\r\n\r\n", 200, true, false},
	{"chunk size overflows", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000002\r\nok\r\n0\r\n\r\n", 200, true, false},
	{"chunk size with space", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2 \r\nok\r\n0\r\n\r\n", 200, true, false},
	{"chunk size with text", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2 x\r\nok\r\n0\r\n\r\n", 200, true, false},
	{"NUL in extension", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;\x00\r\nok\r\n0\r\n\r\n", 200, true, false},
	{"LF behind chunk size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\nok\r\n0\r\n\r\n", 200, true, false},
	{"LF behind chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\n0\r\n\r\n", 200, true, false},
	{"chunk longer than its size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokay\r\n0\r\n\r\n", 200, true, false},
	{"LF in extension", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a\nok\r\n0\r\n\r\n", 200, true, false},
	{"extension of 10 KB", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;" + strings.Repeat("a", 10<<10) + "\r\nok\r\n0\r\n\r\n", 200, true, false},
	{"many extensions", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1;"+strings.Repeat("a", 1000)+"\r\no\r\n", 20) + "0\r\n\r\n", 200, true, false},
	{"no last chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", 200, true, false},
	{"no end of trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n", 200, true, false},
	{"trailer is no field", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nGET / HTTP/1.1\r\n\r\n", 200, true, false},
	{"trailer of 20 KB", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("X: "+strings.Repeat("a", 1000)+"\r\n", 20) + "\r\n", 200, true, false},
}
