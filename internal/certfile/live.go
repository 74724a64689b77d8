package certfile

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"chancery/tunnel"
)

// DefaultInterval is how often Watch looks whether a file has changed.
const DefaultInterval = 10 * time.Second

// A reload is tried a few times before it counts as failed: somebody may just
// be replacing the files one after the other.
const (
	tries    = 5
	tryAgain = 50 * time.Millisecond
)

var errUnsteady = fmt.Errorf("%w: the files change while they are read", ErrUnusable)

// Live is an Identity that follows its files. Its methods may be called by many
// goroutines.
type Live struct {
	files   Files
	log     tunnel.Logger
	current atomic.Pointer[Identity]

	mu     sync.Mutex // one reload at a time
	seen   states     // of the files when they were last read
	failed string     // why that did not work; empty when it did
}

// Open loads the files and logs the warnings about them. Errors are those of
// Load. The files are not watched before Watch is called.
func Open(files Files, log tunnel.Logger) (*Live, error) {
	l := &Live{files: files, log: log, seen: look(files)}
	identity, warnings, err := Load(files)
	if err != nil {
		return nil, err
	}
	l.current.Store(identity)
	l.warn(warnings)
	return l, nil
}

// Identity returns the newest good one.
func (l *Live) Identity() *Identity { return l.current.Load() }

// Reload loads the files now. On an error, which wraps ErrUnusable, the
// certificates in use stay in use; new revocation lists still count where they
// fit the CA that stays. It takes up to a quarter of a second where files
// do not fit together.
func (l *Live) Reload() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	previous := l.Identity()
	next, seen, err := l.try(previous)
	l.report(seen, next, err)
	if err != nil {
		next = l.onlyRevocations(previous)
	}
	if next != nil {
		l.current.Store(next)
	}
	return err
}

// Watch follows the files until ctx is done, looking every interval
// (DefaultInterval where it is not positive), and repeats the warnings once a
// day. A set that cannot be used is logged once. changed, which may be nil, is
// called once Identity returns another one, whoever loaded it.
func (l *Live) Watch(ctx context.Context, interval time.Duration, changed func()) {
	if interval <= 0 {
		interval = DefaultInterval
	}
	known := l.Identity()
	poll, daily := time.NewTicker(interval), time.NewTicker(day)
	defer poll.Stop()
	defer daily.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-daily.C:
			l.warn(l.Identity().Warnings())
		case <-poll.C:
			if l.due() {
				_ = l.Reload() // it logs what its caller would
			}
			if now := l.Identity(); now != known {
				known = now
				if changed != nil {
					changed()
				}
			}
		}
	}
}

// due tells whether the files have changed, or could not be used when they were
// last read: the reason may lie elsewhere, for example in who owns them.
func (l *Live) due() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed != "" || !l.seen.equal(look(l.files))
}

// try loads the files, a few times where they do not fit together, and returns
// what was seen of them before.
func (l *Live) try(previous *Identity) (next *Identity, seen states, err error) {
	for try := range tries {
		if try > 0 {
			time.Sleep(tryAgain)
		}
		seen = look(l.files)
		if next, err = l.load(previous); err == nil && !seen.equal(look(l.files)) {
			err = errUnsteady
		}
		if err == nil {
			break
		}
	}
	return next, seen, err
}

// load loads everything, keeping a key that has not changed.
func (l *Live) load(previous *Identity) (*Identity, error) {
	loaded, err := loadPair(l.files, &previous.pair)
	if err != nil {
		return nil, err
	}
	return newIdentity(l.files, loaded)
}

// onlyRevocations returns the previous identity with new revocation lists, or
// nil where there are none that fit. A renewal that went wrong must not keep a
// revocation from its effect.
func (l *Live) onlyRevocations(previous *Identity) *Identity {
	next, err := newIdentity(l.files, &previous.pair)
	if err != nil || next.revoked.digest == previous.revoked.digest {
		return nil
	}
	l.log.Info("certificate revocation lists loaded again", "revoked", next.revoked.entries())
	return next
}

// report logs the outcome of a reload, a failure once.
func (l *Live) report(now states, next *Identity, err error) {
	again := l.seen.equal(now)
	l.seen = now
	if err != nil {
		if !again || l.failed != err.Error() {
			l.log.Error("certificates not loaded again; those in use stay in use", "error", err.Error())
		}
		l.failed = err.Error()
		return
	}
	l.failed = ""
	name, _ := tunnel.CertificateName(next.Leaf()) // Warnings tells where it has none
	l.log.Info("certificates loaded again", "name", name, "serial", fmt.Sprintf("%x", next.Leaf().SerialNumber),
		"not_after", next.Leaf().NotAfter.UTC().Format(time.RFC3339), "revoked", next.revoked.entries())
	l.warn(next.Warnings())
}

func (l *Live) warn(warnings []string) {
	for _, warning := range warnings {
		l.log.Warn(warning)
	}
}

// states is what is known of files without reading them; nil for one that
// cannot be looked at.
type states []os.FileInfo

func look(files Files) states {
	var s states
	for _, path := range append([]string{files.CA, files.Certificate, files.Key}, files.CRLs...) {
		info, err := os.Stat(path)
		if err != nil {
			info = nil
		}
		s = append(s, info)
	}
	return s
}

func (s states) equal(other states) bool {
	return slices.EqualFunc(s, other, func(a, b os.FileInfo) bool {
		if a == nil || b == nil {
			return a == b
		}
		return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && a.Mode() == b.Mode()
	})
}
