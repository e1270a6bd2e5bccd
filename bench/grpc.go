package main

import (
	"bufio"
	"bytes"
	"io"
	"net"

	"golang.org/x/net/http2"
)

// message is a gRPC message of smallBody bytes: not compressed, a length, and the bytes.
var message = append([]byte{0, 0, 0, 0, smallBody}, bytes.Repeat([]byte("x"), smallBody)...)

// literals encodes header fields that are never put into the table: the same bytes are good for every request.
func literals(b []byte, fields ...[2]string) []byte {
	for _, f := range fields {
		b = append(b, 0)
		for _, s := range f {
			b = append(append(b, byte(len(s))), s...) //nolint:gosec // G115: short words
		}
	}
	return b
}

// serveCalls answers each call of gRPC on an HTTP/2 connection, whose preface has been read up to its first line, by a message.
// It looks at no header: whatever is asked is a call with one message.
func serveCalls(c net.Conn, in *bufio.Reader) error {
	if _, err := in.Discard(len(http2.ClientPreface) - len(prefaceLine)); err != nil {
		return err
	}
	out := bufio.NewWriterSize(c, 16<<10)
	framer := http2.NewFramer(out, in)
	head := literals([]byte{0x88}, [2]string{"content-type", "application/grpc"}) // :status 200
	tail := literals(nil, [2]string{"grpc-status", "0"})
	err := framer.WriteSettings()
	for err == nil {
		if in.Buffered() == 0 {
			if err := out.Flush(); err != nil {
				return err
			}
		}
		frame, failed := framer.ReadFrame()
		if failed != nil {
			return failed
		}
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				err = framer.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				err = framer.WritePing(true, f.Data)
			}
		case *http2.GoAwayFrame:
			return io.EOF
		case *http2.DataFrame:
			if f.Length > 0 {
				err = framer.WriteWindowUpdate(0, f.Length)
			}
			if err == nil && f.StreamEnded() {
				err = answerCall(framer, f.StreamID, head, tail)
			}
		}
	}
	return err
}

func answerCall(framer *http2.Framer, stream uint32, head, tail []byte) error {
	if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: head, EndHeaders: true}); err != nil {
		return err
	}
	if err := framer.WriteData(stream, false, message); err != nil {
		return err
	}
	return framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: tail, EndHeaders: true, EndStream: true})
}
