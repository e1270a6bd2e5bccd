package websocket

import (
	"encoding/binary"
	"time"
)

// Opcodes of RFC 6455, 5.2. Those with the bit 8 are control frames.
const (
	opContinuation = 0
	opText         = 1
	opBinary       = 2
	opClose        = 8
	opPing         = 9
	opPong         = 10
)

const (
	bitFinal    = 0x80
	bitsRSV     = 0x70
	maskOpcode  = 0x0f
	bitMasked   = 0x80
	maskLength  = 0x7f
	length16    = 126
	length64    = 127
	lengthOfKey = 4
)

// putHeader writes the header of an unfragmented frame to the end of room, which holds HeaderRoom bytes, and returns
// where it begins.
func putHeader(room []byte, op byte, length int, masked bool, key uint32) int {
	at := HeaderRoom
	second := byte(0)
	if masked {
		at -= lengthOfKey
		binary.LittleEndian.PutUint32(room[at:], key)
		second = bitMasked
	}
	switch {
	case length < length16:
		second |= byte(length) //nolint:gosec // it fits
	case length <= 1<<16-1:
		at -= 2
		binary.BigEndian.PutUint16(room[at:], uint16(length))
		second |= length16
	default:
		at -= 8
		binary.BigEndian.PutUint64(room[at:], uint64(length))
		second |= length64
	}
	at -= 2
	room[at], room[at+1] = bitFinal|op, second
	return at
}

// budget limits how often something happens: controlBurst times at once, then once each controlEvery.
type budget struct{ paidUntil time.Duration }

// take spends one unit at the time now and reports whether there was one left.
func (b *budget) take(now time.Duration) bool {
	b.paidUntil = max(b.paidUntil, now) + controlEvery
	return b.paidUntil-now <= controlBurst*controlEvery
}
