package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// mismatch is why a value cannot be taken.
type mismatch struct{ want, have, hint string }

// Error returns "want ..., have ...; hint".
func (m *mismatch) Error() string { return Problem{Want: m.want, Have: m.have, Hint: m.hint}.String() }

// Duration is a length of time, written as a string such as "1m30s". It is never negative.
type Duration time.Duration

const wantDuration = `a duration such as "5s", "1m30s" or "250ms"`

// ParseDuration reads a duration: one or more decimal numbers, each with a unit of ns, us, ms, s, m or h.
func ParseDuration(s string) (Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || strings.Trim(s, "+-.0123456789") == "" {
		return 0, &mismatch{want: wantDuration, have: quote(s)}
	}
	return Duration(d), nil
}

// String returns the duration without parts that are zero: "1m", not "1m0s".
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func (d *Duration) set(s string) (err error) {
	*d, err = ParseDuration(s)
	return err
}

// Size is a number of bytes, written as a string such as "64KiB". It is never negative.
type Size int64

const wantSize = `a size such as "512B", "64KiB" or "1MiB"`

// sizeUnits has the largest units first, binary before decimal, so that the first that divides a size writes it shortest.
func sizeUnits() []struct {
	name  string
	bytes int64
} {
	return []struct {
		name  string
		bytes int64
	}{
		{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
		{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"kB", 1e3}, {"B", 1},
	}
}

// ParseSize reads a size: a whole number and a unit of B, KiB, MiB, GiB, TiB or, in powers of ten, KB, MB, GB, TB.
func ParseSize(s string) (Size, error) {
	digits := strings.TrimRight(s, "KMGTkiB")
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil {
		return 0, &mismatch{want: wantSize, have: quote(s)}
	}
	for _, u := range sizeUnits() {
		if u.name == s[len(digits):] {
			if int64(n) > math.MaxInt64/u.bytes {
				return 0, &mismatch{want: "a size of less than 8388608TiB", have: quote(s)}
			}
			return Size(int64(n) * u.bytes), nil
		}
	}
	return 0, &mismatch{want: wantSize, have: quote(s)}
}

// String returns the size in the largest binary unit that writes it exactly.
func (s Size) String() string {
	for _, u := range sizeUnits()[:4] {
		if s != 0 && int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

func (s *Size) set(text string) (err error) {
	*s, err = ParseSize(text)
	return err
}

// maxShown is how much of a value an error repeats, in bytes.
const maxShown = 120

// quote shows a value in an error: on one line, and not more of it than a line bears.
func quote(s string) string {
	if len(s) > maxShown {
		return fmt.Sprintf("%s... (%d bytes)", strconv.Quote(s[:maxShown]), len(s))
	}
	return strconv.Quote(s)
}
