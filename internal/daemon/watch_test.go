package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/fsnotify/fsnotify"
	"github.com/sirupsen/logrus"
)

// TestOnlyWhatMattersIsLookedAt has a file and a link among others that nobody reads.
func TestOnlyWhatMattersIsLookedAt(t *testing.T) {
	dir := t.TempDir()
	do(t, os.Mkdir(filepath.Join(dir, "..v1"), 0o755), os.Symlink("..v1", filepath.Join(dir, "..data")),
		os.Symlink("..data/pikod.toml", filepath.Join(dir, "pikod.toml")))
	write(t, filepath.Join(dir, "..v1", "pikod.toml"), "")
	w := newWatcher(logrus.New())
	defer w.close()
	w.watch([]string{filepath.Join(dir, "pikod.toml"), filepath.Join(dir, "pikod.d"), filepath.Join(dir, "gone", "secret")})
	for name, want := range map[string]bool{
		"pikod.toml": true, "..data": true, "pikod.d": true, "gone": true, "secret": true, "50-more.toml": true, filepath.Base(dir): true,
		"pikod.log": false, ".pikod.toml.swp": false, "4913": false, "pikod.toml~": false, ".50-more.toml": false,
	} {
		if have := w.concerns(fsnotify.Event{Name: filepath.Join(dir, name), Op: fsnotify.Write}); have != want {
			t.Errorf("%s: have %v", name, have)
		}
	}
}
