package daemon

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/sirupsen/logrus"
)

const (
	// pollEvery bounds how long a change goes unnoticed that no event tells of, as on network file systems and for
	// single files mounted into a container.
	pollEvery = 10 * time.Second
	// pollAlone is the pace when there are no events at all.
	pollAlone = 2 * time.Second

	lookLimit = 1 << 20 // bytes of a file that count: the most that a load reads
	linksMost = 16      // symbolic links in one path
)

// watcher waits for signs that files have changed: events of the directories that they, and the symbolic links on the way
// to them, lie in. A file that is replaced by another one, or by another directory under the same link, is no other case
// than one that is written to.
type watcher struct {
	log   logrus.FieldLogger
	fs    *fsnotify.Watcher // nil: there are no events
	dirs  []string
	names map[string]bool // last elements of the paths whose change matters
	tick  *time.Ticker
	noted <-chan fsnotify.Event // nil when there are no events
	lost  <-chan error
	warn  map[string]bool // directories that a warning has been written about
}

func newWatcher(log logrus.FieldLogger) *watcher {
	w := &watcher{log: log, warn: map[string]bool{}}
	every := pollEvery
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		log.WithError(err).Warn("no events of the file system: settings are polled")
		every = pollAlone
	} else {
		w.fs, w.noted, w.lost = fs, fs.Events, fs.Errors
	}
	w.tick = time.NewTicker(every)
	return w
}

func (w *watcher) events() <-chan fsnotify.Event { return w.noted }

func (w *watcher) errors() <-chan error { return w.lost }

func (w *watcher) poll() <-chan time.Time { return w.tick.C }

func (w *watcher) close() {
	w.tick.Stop()
	if w.fs != nil {
		_ = w.fs.Close() // nothing depends on it any more
	}
}

// watch makes the directories of the files those that are watched. It is called after each event: a directory that was
// removed and made again is another one.
func (w *watcher) watch(files []string) {
	if w.fs == nil {
		return
	}
	dirs, names := directories(files)
	w.names = names
	for _, dir := range w.dirs {
		if !slices.Contains(dirs, dir) {
			_ = w.fs.Remove(dir) // fails when the directory has gone
		}
	}
	for _, dir := range dirs {
		if err := w.fs.Add(dir); err != nil && !w.warn[dir] {
			w.warn[dir] = true
			w.log.WithFields(logrus.Fields{"directory": dir, "err": err}).
				Warn("directory not watched: changes in it are found by polling")
		}
	}
	w.dirs = dirs
}

// concerns reports whether an event may be about one of the files. Others lie in the same directories, and some of them, such
// as logs, are written to all the time. Only names are compared: one directory may have several paths.
func (w *watcher) concerns(e fsnotify.Event) bool {
	name := filepath.Base(e.Name)
	return w.names[name] || settingsName(name)
}

// settingsName reports whether a file of that name is read if it is in the directory beside the settings file.
func settingsName(name string) bool { return strings.HasSuffix(name, ".toml") && name[0] != '.' }

// directories returns what must be watched to see every change of the files, see [watcher], and the names that matter there.
func directories(files []string) (dirs []string, names map[string]bool) {
	found := map[string]bool{}
	names = map[string]bool{}
	add := func(dir, path string) {
		found[dir], names[filepath.Base(dir)], names[filepath.Base(path)] = true, true, true
		if rest, err := filepath.Rel(dir, path); err == nil { // what has to be made first, if something is missing
			first, _, _ := strings.Cut(rest, string(filepath.Separator))
			names[first] = true
		}
	}
	for _, file := range files {
		path, err := filepath.Abs(file)
		if err != nil {
			path = filepath.Clean(file)
		}
		for range linksMost {
			add(existing(filepath.Dir(path)), path)
			next, link := resolveOne(path)
			if link == "" {
				break
			}
			add(filepath.Dir(link), link)
			path = next
		}
		if info, err := os.Stat(file); err == nil && info.IsDir() {
			add(path, path)
		}
	}
	return slices.Sorted(maps.Keys(found)), names
}

// resolveOne replaces the first symbolic link in a path by what it points to, and returns the link too; "": there is none.
func resolveOne(path string) (resolved, link string) {
	parts := strings.Split(path, string(filepath.Separator))
	for i := range parts {
		prefix := strings.Join(parts[:i+1], string(filepath.Separator))
		if prefix == "" {
			continue
		}
		target, err := os.Readlink(prefix)
		if err != nil {
			continue
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(prefix), target)
		}
		return filepath.Join(append([]string{target}, parts[i+1:]...)...), prefix
	}
	return path, ""
}

// existing returns the directory, or the nearest one above it that exists: there it will show when it is made.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return dir
		}
		dir = parent
	}
}

// fingerprint is the content of files at one moment.
type fingerprint struct {
	sum   [sha256.Size]byte
	blank map[string]bool // files that have nothing in them
}

// look takes the fingerprint of files, and of the names in directories. What can't be read counts by the reason.
func look(files []string) fingerprint {
	f := fingerprint{blank: map[string]bool{}}
	all := sha256.New()
	for _, file := range files {
		fmt.Fprintf(all, "%q ", file)
		blank, err := lookAt(all, file)
		if err != nil {
			fmt.Fprintf(all, "%v", err)
		}
		f.blank[file] = blank
		fmt.Fprintln(all)
	}
	all.Sum(f.sum[:0])
	return f
}

// lookAt adds what is in one file, and reports whether that is nothing but white space.
func lookAt(all hash.Hash, file string) (blank bool, err error) {
	info, err := os.Stat(file)
	if err != nil {
		return false, err
	}
	if info.IsDir() {
		entries, err := os.ReadDir(file)
		for _, e := range entries {
			if name := e.Name(); settingsName(name) {
				fmt.Fprintf(all, "%q", name)
			}
		}
		return false, err
	}
	if !info.Mode().IsRegular() {
		return false, fmt.Errorf("%v", info.Mode().Type())
	}
	f, err := os.Open(file)
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }() // it was only read
	b, err := io.ReadAll(io.LimitReader(f, lookLimit+1))
	if err != nil {
		return false, err
	}
	one := sha256.Sum256(b)
	_, _ = all.Write(one[:]) // a hash takes everything
	return len(strings.TrimSpace(string(b))) == 0, nil
}
