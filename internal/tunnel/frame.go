package tunnel

import (
	"encoding/binary"
	"time"
)

// Sizes of yamux.
const (
	frameSize     = 12        // of a frame header
	initialWindow = 256 << 10 // of every stream before the first window update
	largestWindow = 16 << 20  // that we ever grant
	controlStream = 1         // of native sessions
)

// Kinds of frames.
const (
	kindData = iota
	kindWindow
	kindPing
	kindGoAway
)

// Flags of frames.
const (
	flagSYN = 1 << iota
	flagACK
	flagFIN
	flagRST
)

// Codes of GoAway.
const (
	goAwayNormal   = 0
	goAwayInternal = 2
)

// frame is the header of a yamux frame: version 1 byte, kind 1 byte, flags 2 bytes, stream 4 bytes, length 4 bytes, big
// endian. The length is that of the body for data, a delta for window updates, an id for pings, a code for GoAway.
type frame []byte

func (f frame) version() byte  { return f[0] }
func (f frame) kind() byte     { return f[1] }
func (f frame) flags() uint16  { return binary.BigEndian.Uint16(f[2:4]) }
func (f frame) stream() uint32 { return binary.BigEndian.Uint32(f[4:8]) }
func (f frame) length() uint32 { return binary.BigEndian.Uint32(f[8:12]) }

func makeFrame(kind byte, flags uint16, stream, length uint32) (f [frameSize]byte) {
	f[1] = kind
	binary.BigEndian.PutUint16(f[2:4], flags)
	binary.BigEndian.PutUint32(f[4:8], stream)
	binary.BigEndian.PutUint32(f[8:12], length)
	return f
}

// meter allows one event every so often, and more after a pause: the generic cell rate algorithm. Times are those since
// the start of the session.
type meter struct{ due time.Duration }

// take reports whether an event at now is within burst events ahead of one every so often.
func (m *meter) take(now, every time.Duration, burst int) bool {
	m.due = max(m.due, now)
	if m.due-now > every*time.Duration(burst) {
		return false
	}
	m.due += every
	return true
}
