package websocket

import (
	"encoding/binary"
	"fmt"
)

// decoder turns the bytes from the socket into data. It takes whatever comes, in pieces of any size, and keeps at most
// an unfinished header and an unfinished control frame, so that it needs no buffer of its own:
//
//	         +--------------------- message -------------------------+
//	header ->| data frame -> (header -> control frame)* -> header -> |-> header ...
//	         +-------------------------------------------------------+
type decoder struct {
	masked  bool                                // frames must be masked: the peer is the client
	limit   int64                               // of the data of one message
	control func(op byte, payload []byte) error // called for each control frame
	spend   func() error                        // called for each message without data

	head  [HeaderRoom]byte // an unfinished header
	nhead int

	op    byte // of the frame being read
	final bool
	left  int64 // payload bytes to come
	key   uint32
	held  []byte // of an unfinished control frame

	open      bool // within a message: its last frame is not finished
	size      int64
	fragments int
}

// border reports whether the bytes so far end where a message ends.
func (d *decoder) border() bool { return !d.open && d.nhead == 0 && d.left == 0 }

// decode consumes all of b and moves the data in it to its front. It returns how much that is, valid also when it
// returns an error: that of the first faulty frame or of control. After an error it must not be called again.
func (d *decoder) decode(b []byte) (int, error) {
	n := 0
	for src := b; len(src) > 0; {
		if d.left == 0 {
			used, complete, err := d.header(src)
			if err != nil {
				return n, err
			}
			src = src[used:]
			if !complete {
				break
			}
		}
		k := int(min(d.left, int64(len(src))))
		if d.op&opClose != 0 {
			at := len(d.held)
			d.held = append(d.held, src[:k]...)
			d.key = xor(d.held[at:], src[:k], d.key)
		} else {
			d.key = xor(b[n:n+k], src[:k], d.key)
			n += k
		}
		src = src[k:]
		if d.left -= int64(k); d.left > 0 {
			break
		}
		if err := d.finish(); err != nil {
			return n, err
		}
	}
	return n, nil
}

// finish ends the frame being read.
func (d *decoder) finish() error {
	if d.op&opClose != 0 {
		held := d.held
		d.held = nil
		return d.control(d.op, held)
	}
	if !d.final {
		return nil
	}
	d.open = false
	if d.size == 0 {
		return d.spend()
	}
	return nil
}

// header reads a frame header from the front of src, or what there is of it.
func (d *decoder) header(src []byte) (used int, complete bool, err error) {
	h := src
	if d.nhead > 0 {
		h = d.head[:d.nhead+copy(d.head[d.nhead:], src)]
	}
	size, err := d.parse(h)
	if err != nil {
		return 0, false, err
	}
	if size == 0 {
		if d.nhead == 0 {
			copy(d.head[:], src)
		}
		d.nhead = len(h)
		return len(src), false, nil
	}
	used = size - d.nhead
	d.nhead = 0
	return used, true, nil
}

// parse reads a header from the front of h and returns its size, or 0 and no change when h is too short.
func (d *decoder) parse(h []byte) (int, error) {
	if len(h) < 2 {
		return 0, nil
	}
	if err := d.check(h[0], h[1]); err != nil {
		return 0, err
	}
	size, length := 2, int64(h[1]&maskLength)
	switch length {
	case length16:
		size += 2
	case length64:
		size += 8
	}
	payload := size
	if d.masked {
		payload += lengthOfKey
	}
	if len(h) < payload {
		return 0, nil
	}
	switch length {
	case length16:
		if length = int64(binary.BigEndian.Uint16(h[2:])); length < length16 {
			return 0, &ProtocolError{closeProtocol, "length in 16 bits that fits into 7"}
		}
	case length64:
		//nolint:gosec // a length beyond an int64 becomes negative, and is refused as such
		if length = int64(binary.BigEndian.Uint64(h[2:])); length < 0 || length > 1<<16-1 {
			break
		}
		return 0, &ProtocolError{closeProtocol, "length in 64 bits that fits into 16"}
	}
	d.key = 0
	if d.masked {
		d.key = binary.LittleEndian.Uint32(h[size:])
	}
	return payload, d.begin(h[0], length)
}

// check looks at what the first two bytes of a header say.
func (d *decoder) check(first, second byte) error {
	op := first & maskOpcode
	switch {
	case first&bitsRSV != 0:
		return &ProtocolError{closeProtocol, "reserved bit set, no extension was agreed on"}
	case op > opBinary && op < opClose || op > opPong:
		return &ProtocolError{closeProtocol, fmt.Sprintf("reserved opcode %d", op)}
	case d.masked && second&bitMasked == 0:
		return &ProtocolError{closeProtocol, "frame of a client without mask"}
	case !d.masked && second&bitMasked != 0:
		return &ProtocolError{closeProtocol, "frame of a server with mask"}
	case op&opClose != 0 && first&bitFinal == 0:
		return &ProtocolError{closeProtocol, "fragmented control frame"}
	case op&opClose != 0 && second&maskLength > controlLimit:
		return &ProtocolError{closeProtocol, "control frame longer than 125 bytes"}
	case op == opContinuation && !d.open:
		return &ProtocolError{closeProtocol, "continuation of no message"}
	case (op == opBinary || op == opText) && d.open:
		return &ProtocolError{closeProtocol, "message begins within a message"}
	case op == opText:
		return &ProtocolError{closeText, "text message, only binary ones are understood"}
	}
	return nil
}

// begin starts a frame of length payload bytes.
func (d *decoder) begin(first byte, length int64) error {
	if length < 0 {
		return &ProtocolError{closeProtocol, "length with its highest bit set"}
	}
	d.op, d.final, d.left = first&maskOpcode, first&bitFinal != 0, length
	if d.op&opClose != 0 {
		return nil
	}
	if d.op == opBinary {
		d.open, d.size, d.fragments = true, 0, 0
	}
	if length > d.limit-d.size {
		return &ProtocolError{closeTooBig, fmt.Sprintf("message longer than %d bytes", d.limit)}
	}
	d.size += length
	// Some clients cut what they send into pieces of 4 KiB, however long it is.
	if d.fragments++; d.fragments > maxFragments && int64(d.fragments-maxFragments) > d.size>>10 {
		return &ProtocolError{closePolicy, fmt.Sprintf("message of %d fragments for %d bytes", d.fragments, d.size)}
	}
	return nil
}
