package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/config"
)

// Prepare is how a running assembly takes new settings without a restart. It builds everything that the next settings ask
// for and that can fail: it reads certificates and keys and binds new sockets, and changes nothing that is in use. It
// waits for nothing in the network, so it has no limit. The settings are of the program's own type and have been loaded.
// With an error nothing is left of what it built. It is called by one goroutine, and what it returns is carried out before
// the next call.
type Prepare func(next Settings) (Change, error)

// Change puts prepared settings into use. Either function may be nil.
type Change struct {
	// Commit makes the new settings those in use. It can't fail and waits for nothing.
	Commit func()
	// Retire begins to end what was replaced, and returns at once: what runs there finishes in goroutines that belong to
	// the assembly.
	Retire func()
}

// readMost is how often files are read in one attempt whose every reading names other files.
const readMost = 3

// errNoReload is the answer of a process that has nobody to take new settings.
var errNoReload = errors.New("the process is not running as a daemon, or about to stop: nothing was reloaded")

// Reloads says that the assembly takes new settings from now on. Until then a reload waits. It is called once.
func (p *Process) Reloads(prepare Prepare) {
	if p.reload != nil {
		p.reload.assembly <- prepare
	}
}

// Reload loads the settings anew and puts them into use, as SIGHUP does, and waits for the outcome. Requests that come
// together are answered by one reload. Nil means that the settings of the files are those in use; an error, that nothing
// has changed. When ctx ends first, the reload goes on without a listener.
func (p *Process) Reload(ctx context.Context) error {
	if p.reload == nil {
		return errNoReload
	}
	done := make(chan error, 1) // so that the loop never waits for one who has left
	select {
	case p.reload.asks <- done:
	case <-p.reload.ended:
		return errNoReload
	case <-ctx.Done():
		return fmt.Errorf("reload not begun: %w", ctx.Err())
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("outcome of the reload not awaited: %w", ctx.Err())
	}
}

// Outcome is what became of the last reload, for status answers.
type Outcome struct {
	Time      time.Time `json:"time"`               // of the last attempt; at first, of the start
	Succeeded time.Time `json:"succeeded"`          // of the last attempt that was not refused
	Digest    string    `json:"settings"`           // of the settings in use
	Problems  []string  `json:"problems,omitempty"` // why the last attempt was refused; empty: it was not
	Changed   []string  `json:"changed,omitempty"`  // keys that it changed
	Count     uint64    `json:"reloads"`            // attempts since the start
	Failures  uint64    `json:"refused"`            // those that were refused
}

// LastReload returns what became of the last reload. It is the zero value for a process that can't reload.
func (p *Process) LastReload() Outcome {
	if p.reload == nil {
		return Outcome{}
	}
	p.reload.mu.Lock()
	defer p.reload.mu.Unlock()
	return p.reload.last
}

// reloads is the loop through which every reload goes.
//
//	SIGHUP ────────────────┐
//	POST /reload ──────────┤                                           ┌─ refuses ─► log, metrics; nothing has changed
//	pikod --reload PID ────┼─► load ─► what differs ─► Prepare ────────┤
//	directories, poll ─► settled content that is new ─┘               └─ Commit ─► Retire ─► log, metrics
//
// One goroutine, run, does it all. What it knows of the files is a fingerprint of their content, so that an event
// is only a reason to look, and a save without a change is none to reload.
type reloads struct {
	p *Process
	origin
	asks     chan chan<- error // those who wait for the outcome
	hangup   chan os.Signal    // SIGHUP
	assembly chan Prepare      // holds it until the loop takes it
	lastly   atomic.Pointer[Prepare]
	ended    chan struct{} // closed by run when it returns

	patience, most time.Duration // of the settler

	// Of the goroutine of run.
	stopping bool
	prepare  Prepare
	current  Settings
	files    []string // that may change: those of the current settings, and of the last that were refused
	judged   fingerprint

	mu    sync.Mutex // guards the following
	last  Outcome
	inUse Settings // current, for everybody
}

func newReloads(p *Process, s Settings, from origin) *reloads {
	r := &reloads{
		p: p, origin: from, current: s, inUse: s,
		asks: make(chan chan<- error), hangup: make(chan os.Signal, 1),
		assembly: make(chan Prepare, 1), ended: make(chan struct{}), patience: patience, most: settleMost,
	}
	now := time.Now()
	r.last = Outcome{Time: now, Succeeded: now, Digest: s.Digest()}
	r.files = r.watched(s)
	r.judged = look(r.files)
	return r
}

// watched lists the files whose change is a reason to reload settings.
func (r *reloads) watched(s ...Settings) []string {
	var files []string
	if r.file != "" {
		files = append(files, r.file)
	}
	for _, one := range s {
		if one != nil {
			files = append(files, one.Source().Files()...)
		}
	}
	slices.Sort(files)
	return slices.Compact(files)
}

// run reloads until ctx ends, and then, as far as that is possible, until the process does.
func (r *reloads) run(ctx, process context.Context) {
	defer close(r.ended)
	select {
	case r.prepare = <-r.assembly:
	case <-ctx.Done():
		return
	}
	eyes := newWatcher(r.p.Log)
	defer eyes.close()
	eyes.watch(r.files)
	settle := newSettler(r.patience, r.most)
	defer settle.stop()
	settle.begin() // something may have changed since the settings were loaded
	stop := ctx.Done()
	for {
		select {
		case <-stop:
			if r.lastly.Load() == nil {
				return
			}
			r.stopping, stop = true, nil
		case <-process.Done():
			return
		case done := <-r.asks:
			settle.end()
			r.command("request", r.gather(done))
		case <-r.hangup:
			settle.end()
			r.command("signal", r.gather(nil))
		case e := <-eyes.events():
			if !eyes.concerns(e) {
				continue
			}
			settle.begin()
		case err := <-eyes.errors():
			r.p.Log.WithError(err).Debug("events of the file system lost")
			settle.begin()
		case <-eyes.poll():
			settle.begin()
		case <-settle.timer.C:
			r.settled(settle)
		}
		eyes.watch(r.files)
	}
}

// gather collects everybody who waits for a reload at this moment.
func (r *reloads) gather(first chan<- error) []chan<- error {
	var waiting []chan<- error
	if first != nil {
		waiting = append(waiting, first)
	}
	for {
		select {
		case one := <-r.asks:
			waiting = append(waiting, one)
		default:
			return waiting
		}
	}
}

// command reloads because somebody asked for it.
func (r *reloads) command(trigger string, waiting []chan<- error) {
	r.reloading()
	next, err := r.read()
	err = r.conclude(trigger, next, err)
	for _, done := range waiting {
		done <- err
	}
}

// settled is called when files may have changed and then had some time. It reloads when they have changed, have not
// changed further meanwhile, and make sense; what makes none gets some more time, since somebody may be at writing it.
func (r *reloads) settled(settle *settler) {
	now := look(r.files)
	if now.sum == r.judged.sum {
		settle.end()
		return
	}
	if !settle.quiet(now) {
		return
	}
	before := r.judged
	next, err := r.read()
	if err == nil {
		err = r.emptied(before)
	}
	if err != nil && !settle.patient() {
		r.judged = before
		return
	}
	settle.end()
	if err == nil && len(r.current.Changes(next)) == 0 && len(r.lastProblems()) == 0 {
		return // a comment, or the order of keys
	}
	r.reloading()
	_ = r.conclude("file", next, err) // logged; there is nobody else to tell
}

// emptied refuses a settings file that has become empty, unless somebody asks for a reload: more likely than that all
// settings shall be the defaults is that somebody is about to write it, or that the disk was full.
func (r *reloads) emptied(before fingerprint) error {
	if r.file == "" || !r.judged.blank[r.file] || before.blank[r.file] {
		return nil
	}
	return &config.Problems{List: []config.Problem{{
		File: r.file, Want: "settings", Have: "an empty file",
		Hint: "if all settings shall be the defaults, say so by SIGHUP or POST /reload",
	}}}
}

func (r *reloads) lastProblems() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last.Problems
}

// reloading tells systemd that a reload has begun, unless it is waiting for the process to stop.
func (r *reloads) reloading() {
	if !r.stopping {
		r.p.reloading()
	}
}

// read loads the settings and notes the content that it judges. What was there before the load is what counts: what is
// changed during the load will differ from it.
func (r *reloads) read() (Settings, error) {
	for attempt := 1; ; attempt++ {
		r.judged = look(r.files)
		next, err := r.loadFile()
		files := r.watched(r.current, next)
		same := slices.Equal(files, r.files)
		r.files = files
		if same || attempt == readMost {
			return next, err
		}
	}
}

// loadFile loads the settings. A file that was not named and not there at the start may be there now; one that was in
// use must not vanish.
func (r *reloads) loadFile() (Settings, error) {
	if r.optional && (r.file == "" || strings.HasSuffix(r.file, ".d")) {
		r.file = configFile(r.p.Name, "")
	}
	return r.load(r.file)
}

// conclude puts settings into use, or finds out why not, and tells everybody.
func (r *reloads) conclude(trigger string, next Settings, err error) error {
	if r.stopping {
		return r.takeBack(trigger, next, err)
	}
	var changed []string
	if err == nil {
		changed, err = r.apply(next)
	}
	if err != nil {
		r.refused(trigger, err)
		return err
	}
	r.mu.Lock()
	now := time.Now()
	r.inUse = r.current
	r.last.Time, r.last.Succeeded, r.last.Digest = now, now, next.Digest()
	r.last.Problems, r.last.Changed = nil, changed
	r.last.Count++
	r.mu.Unlock()
	r.p.Log.WithFields(logrus.Fields{"trigger": trigger, "settings": next.Digest(), "changed": listed(changed)}).
		Info("settings reloaded")
	for _, w := range next.Source().Warnings() {
		r.p.Log.WithField("setting", w.String()).Warn("unwise setting")
	}
	r.p.reloaded("settings reloaded at " + now.Format(time.TimeOnly))
	return nil
}

// refused tells that a reload has changed nothing.
func (r *reloads) refused(trigger string, err error) {
	var problems []string
	// House rule: the text is not matched, only cut into lines.
	for line := range strings.Lines(err.Error()) {
		problems = append(problems, strings.TrimRight(line, "\n"))
	}
	for _, one := range problems {
		r.p.Log.WithFields(logrus.Fields{"trigger": trigger, "problem": one}).Error("settings not reloaded")
	}
	r.mu.Lock()
	r.last.Time, r.last.Problems, r.last.Changed = time.Now(), problems, nil
	r.last.Count++
	r.last.Failures++
	r.mu.Unlock()
	if !r.stopping {
		r.p.reloaded("reload FAILED: " + problems[0])
	}
}

// apply prepares, commits and retires, and returns the keys that changed. With an error nothing has changed.
func (r *reloads) apply(next Settings) ([]string, error) {
	changes := r.current.Changes(next)
	if err := restarts(changes); err != nil {
		return nil, next.Source().Locate(err)
	}
	if _, _, err := parseLog(next.Log()); err != nil {
		return nil, err
	}
	if len(changes) == 0 {
		return nil, nil
	}
	change, err := r.prepare(next)
	if err != nil {
		return nil, next.Source().Locate(err)
	}
	if err := r.p.SetLog(next.Log()); err != nil {
		r.p.Log.WithError(err).Error("log unchanged") // can't happen: parseLog took it
	}
	if change.Commit != nil {
		change.Commit()
	}
	r.current = next
	if change.Retire != nil {
		change.Retire()
	}
	names := make([]string, len(changes))
	for i, c := range changes {
		names[i] = c.Key
	}
	return names, nil
}
