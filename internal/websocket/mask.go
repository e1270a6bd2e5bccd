package websocket

import (
	"encoding/binary"
	"math/bits"
)

// xor writes src, masked or unmasked with key, to the front of dst, and returns the key for the bytes that follow. The
// first byte is combined with the low byte of key. dst must be as long as src; it may be src, or overlap it when it
// begins before it.
func xor(dst, src []byte, key uint32) uint32 {
	dst = dst[:len(src)]
	next := bits.RotateLeft32(key, -8*(len(src)&3))
	if key == 0 {
		copy(dst, src)
		return next
	}
	wide := uint64(key)<<32 | uint64(key)
	// Each word is stored before the next is loaded, and never ahead of it: that is what makes the overlap safe.
	for len(src) >= 64 {
		s, d := src[:64:64], dst[:64:64]
		binary.LittleEndian.PutUint64(d[0:], binary.LittleEndian.Uint64(s[0:])^wide)
		binary.LittleEndian.PutUint64(d[8:], binary.LittleEndian.Uint64(s[8:])^wide)
		binary.LittleEndian.PutUint64(d[16:], binary.LittleEndian.Uint64(s[16:])^wide)
		binary.LittleEndian.PutUint64(d[24:], binary.LittleEndian.Uint64(s[24:])^wide)
		binary.LittleEndian.PutUint64(d[32:], binary.LittleEndian.Uint64(s[32:])^wide)
		binary.LittleEndian.PutUint64(d[40:], binary.LittleEndian.Uint64(s[40:])^wide)
		binary.LittleEndian.PutUint64(d[48:], binary.LittleEndian.Uint64(s[48:])^wide)
		binary.LittleEndian.PutUint64(d[56:], binary.LittleEndian.Uint64(s[56:])^wide)
		src, dst = src[64:], dst[64:]
	}
	for len(src) >= 8 {
		binary.LittleEndian.PutUint64(dst[:8], binary.LittleEndian.Uint64(src[:8])^wide)
		src, dst = src[8:], dst[8:]
	}
	for i := range src {
		dst[i] = src[i] ^ byte(wide>>(8*i)) //nolint:gosec // the low byte is what is meant
	}
	return next
}
