package secrets

import (
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// lookInterval is how often Watched looks at its files. Renewed ones are used a
// few seconds after they were written; reading three small files costs next to
// nothing.
const lookInterval = 5 * time.Second

// Watched is a value that is made of files, for example TLS certificates. It is
// made anew when they change; what cannot be used changes nothing. It runs
// nothing: whoever asks for the value looks at the files, every 5 s at most.
type Watched[T any] struct {
	source Source[T]
	log    *slog.Logger

	current atomic.Pointer[version[T]]
	looked  atomic.Int64 // Unix time in ns
	// problem is why the files cannot be used as they are now; nil: they are used.
	// refusals counts the changes that could not be.
	problem  atomic.Pointer[string]
	refusals atomic.Int64

	// mu is held by the one who looks; others go on with the current value.
	mu sync.Mutex
	// Guarded by mu. refused are the files that were refused last, so that each refusal is
	// logged once. warned are the certificates whose validity was logged, with the text.
	refused Files
	warned  map[*x509.Certificate]string
}

// Source makes the value of a Watched.
type Source[T any] struct {
	// Name of the value in the log: "TLS certificate".
	Name string
	// Read returns the files as they are now.
	Read func() (Files, error)
	// Parse makes the value, and returns the certificates in it. Its errors show nothing
	// that is secret.
	Parse func(Files) (value T, certs Certificates, err error)
	// Use is called before a value becomes the current one; nil: nothing is.
	Use func(T)
}

type version[T any] struct {
	value T
	certs Certificates
	files Files
}

// Watch returns the value as it is now, watched, or what is wrong with the files.
// A certificate that has expired is used, with a warning.
func Watch[T any](source Source[T], log *slog.Logger) (*Watched[T], error) {
	w := &Watched[T]{source: source, log: log}
	files, err := source.Read()
	if err != nil {
		return nil, err
	}
	v, err := w.parse(files)
	if err != nil {
		return nil, err
	}
	w.use(v, time.Now())
	return w, nil
}

// Get returns the newest value that could be used. It may read the files.
func (w *Watched[T]) Get() T {
	now := time.Now()
	if now.UnixNano()-w.looked.Load() >= int64(lookInterval) && w.mu.TryLock() {
		w.look(now)
		w.mu.Unlock()
	}
	return w.current.Load().value
}

// Leaf returns the certificate in the value, or nil.
func (w *Watched[T]) Leaf() *x509.Certificate { return w.Certificates().Leaf }

// Certificates returns those in the value. It may read the files.
func (w *Watched[T]) Certificates() Certificates {
	w.Get()
	return w.current.Load().certs
}

// Refused returns how many changes of the files could not be used.
func (w *Watched[T]) Refused() int64 { return w.refusals.Load() }

// Warnings returns what is wrong with the files, and which certificates are not valid at
// now, or not for long.
func (w *Watched[T]) Warnings(now time.Time) []string {
	certs := w.Certificates()
	var warnings []string
	if problem := w.problem.Load(); problem != nil {
		warnings = append(warnings, fmt.Sprintf("%s: the files cannot be used, those before are: %s", w.source.Name, *problem))
	}
	for _, c := range certs.all() {
		if text := warningOf(c, now); text != "" {
			warnings = append(warnings, w.source.Name+": "+text)
		}
	}
	return warnings
}

// Prepare reads the files now. use makes them the current ones and reports whether they
// differ from those before. Until then nothing changes. The error is what is wrong with
// them: it is neither counted nor logged here, as nobody may have meant to use them.
func (w *Watched[T]) Prepare() (use func() (changed bool), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	next, _, err := w.read(now)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w.source.Name, err)
	}
	return func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		if next.files.Equal(w.current.Load().files) {
			w.forgetLocked()
			return false
		}
		w.use(next, now)
		return true
	}, nil
}

func (w *Watched[T]) parse(files Files) (*version[T], error) {
	value, certs, err := w.source.Parse(files)
	if err != nil {
		return nil, err
	}
	return &version[T]{value: value, certs: certs, files: files}, nil
}

// read returns the value of the files, which is the current one if they have not changed,
// or why they cannot be used. It changes nothing.
func (w *Watched[T]) read(now time.Time) (*version[T], Files, error) {
	current := w.current.Load()
	files, err := w.source.Read()
	if err == nil && files.Equal(current.files) {
		return current, files, nil
	}
	var next *version[T]
	if err == nil {
		next, err = w.parse(files)
	}
	if err == nil && CheckTime(current.certs.Leaf, now) == nil {
		err = CheckTime(next.certs.Leaf, now)
	}
	return next, files, err
}

// look makes the value anew if the files have changed. mu is held.
func (w *Watched[T]) look(now time.Time) {
	w.looked.Store(now.UnixNano())
	next, files, err := w.read(now)
	switch {
	case err != nil:
		w.refuse(files, err)
	case next == w.current.Load():
		w.forgetLocked()
		w.warnOfTime(next, now)
	default:
		w.use(next, now)
		w.log.Info("the files have changed and are used", "what", w.source.Name)
	}
}

// use makes v the current value.
func (w *Watched[T]) use(v *version[T], now time.Time) {
	if w.source.Use != nil {
		w.source.Use(v.value)
	}
	w.current.Store(v)
	w.looked.Store(now.UnixNano())
	w.forgetLocked()
	w.warned = nil
	w.warnOfTime(v, now)
}

// forgetLocked forgets files that could not be used: those there are now can be.
func (w *Watched[T]) forgetLocked() {
	w.problem.Store(nil)
	w.refused = nil
}

// refuse counts and logs what is wrong with the files, once.
func (w *Watched[T]) refuse(files Files, err error) {
	text := err.Error()
	if before := w.problem.Load(); before != nil && *before == text && files.Equal(w.refused) {
		return
	}
	w.refused = files
	w.problem.Store(&text)
	w.refusals.Add(1)
	w.log.Warn("the files have changed and cannot be used: those before are", "what", w.source.Name, "error", err)
}

// warnOfTime logs which certificates are not valid now, or not for long, once for each.
func (w *Watched[T]) warnOfTime(v *version[T], now time.Time) {
	for _, c := range v.certs.all() {
		text := warningOf(c, now)
		if text == "" || w.warned[c.cert] == text {
			continue
		}
		if w.warned == nil {
			w.warned = make(map[*x509.Certificate]string)
		}
		w.warned[c.cert] = text
		if CheckTime(c.cert, now) == nil {
			w.log.Warn("a certificate is to be renewed", "what", w.source.Name, "warning", text)
		} else {
			w.log.Warn("clients will refuse the certificate", "what", w.source.Name, "error", text)
		}
	}
}
