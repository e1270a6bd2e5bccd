package config

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"strings"
	"syscall"
)

const (
	maxFile   = 1 << 20  // bytes of a settings file, a certificate or a key
	maxSecret = 64 << 10 // bytes of a file that holds a secret
)

var errNoFile = errors.New("something that is not a file")

// errTooLarge says that a file exceeds a limit.
type errTooLarge int64

// Error names the limit.
func (e errTooLarge) Error() string { return "more than " + Size(e).String() }

// readFile reads a file of at most limit bytes. It opens nothing that could block, such as a pipe nobody writes to.
func readFile(name string, limit int64) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errNoFile
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = errTooLarge(limit)
	}
	return data, err
}

// Read returns what is in the file, at most 1 MiB. It reads regular files only, so that it cannot block for long. The error
// does not repeat the name.
func (f File) Read() ([]byte, error) {
	data, err := readFile(string(f), maxFile)
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return data, err
}

// reason says why a file cannot be read, without its name.
func reason(err error) string {
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return err.Error()
}

// access says who may read a file when err is that this process may not; else "".
func access(name string, err error) string {
	info, statErr := os.Stat(name)
	if !errors.Is(err, fs.ErrPermission) || statErr != nil {
		return ""
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("it has mode %04o, user %d and group %d, and this process is user %d and group %d",
		info.Mode().Perm(), stat.Uid, stat.Gid, os.Geteuid(), os.Getegid())
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// named reads the files that the settings name: secrets become the values they stand for, others must be readable.
func (l *loader) named(v reflect.Value, prefix string) {
	for _, f := range fields(v.Type()) {
		field, name := v.FieldByIndex(f.Index), join(prefix, f.Tag.Get("toml"))
		switch {
		case isTable(f.Type):
			l.named(field, name)
		case isTables(f.Type):
			for i := range field.Len() {
				l.named(field.Index(i), fmt.Sprintf("%s[%d]", name, i))
			}
		case f.Type == reflect.TypeFor[File]() && field.String() != "":
			l.namedFile(v, f, name)
		}
	}
}

// namedFile reads the file that field f of v names.
func (l *loader) namedFile(v reflect.Value, f reflect.StructField, key string) {
	path := v.FieldByIndex(f.Index).String()
	l.depends(path)
	if l.bad(key) {
		return
	}
	into := f.Tag.Get("into")
	limit := int64(maxFile)
	list := into != "" && v.FieldByName(into).Kind() == reflect.Slice
	if into != "" && !list {
		limit = maxSecret
	}
	data, err := readFile(path, limit)
	if err != nil {
		l.blame(Problem{Key: key, Want: "a readable file", Have: quote(path) + ": " + reason(err), Hint: access(path, err)})
		return
	}
	if l.source.sums == nil {
		l.source.sums = make(map[string][sha256.Size]byte)
	}
	l.source.sums[path] = sha256.Sum256(data)
	private := f.Name == "Key"
	if list {
		v.FieldByName(into).Set(reflect.ValueOf(entries(string(data))))
	} else if into != "" {
		target := v.FieldByName(into)
		text := strings.TrimRight(string(data), "\r\n")
		if text == "" {
			l.blame(Problem{Key: key, Want: "a file with something in it", Have: quote(path) + ", which is empty"})
			return
		}
		if secret, ok := target.Addr().Interface().(*Secret); ok {
			*secret, private = NewSecret(text), true
		} else {
			target.SetString(text)
		}
	}
	if info, err := os.Stat(path); err == nil && private && info.Mode().Perm()&0o007 != 0 {
		l.blame(Problem{Key: key, Want: "a file that other users of this host can't open",
			Have: fmt.Sprintf("%s with mode %04o", quote(path), info.Mode().Perm()), Hint: "chmod o= " + path})
	}
}

// entries returns the lines of a list that a file holds, without empty ones and those that begin with #.
func entries(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			out = append(out, line)
		}
	}
	return out
}

// warn adds something that is allowed but unwise.
func (l *loader) warn(p Problem) {
	l.source.places = l.places
	l.source.warnings = append(l.source.warnings, Source{&l.source}.At(p))
}
