package secrets

import (
	"crypto/x509"
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

	// mu is held by the one who looks; others go on with the current value.
	mu sync.Mutex
	// Of what was refused last, so that it is logged once.
	refused      Files
	refusedError string
	expiryLogged *x509.Certificate
}

// Source makes the value of a Watched.
type Source[T any] struct {
	// Name of the value in the log: "TLS certificate".
	Name string
	// Read returns the files as they are now.
	Read func() (Files, error)
	// Parse makes the value. The leaf is the certificate in it, or nil. Its errors
	// show nothing that is secret.
	Parse func(Files) (value T, leaf *x509.Certificate, err error)
}

type version[T any] struct {
	value T
	leaf  *x509.Certificate
	files Files
}

// Watch returns the value as it is now, watched, or what is wrong with the files.
// A certificate that has expired is used, with a warning.
func Watch[T any](source Source[T], log *slog.Logger) (*Watched[T], error) {
	w := &Watched[T]{source: source, log: log}
	v, err := w.read()
	if err != nil {
		return nil, err
	}
	w.use(v)
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
func (w *Watched[T]) Leaf() *x509.Certificate {
	w.Get()
	return w.current.Load().leaf
}

func (w *Watched[T]) read() (*version[T], error) {
	files, err := w.source.Read()
	if err != nil {
		return nil, err
	}
	return w.parse(files)
}

func (w *Watched[T]) parse(files Files) (*version[T], error) {
	value, leaf, err := w.source.Parse(files)
	if err != nil {
		return nil, err
	}
	return &version[T]{value: value, leaf: leaf, files: files}, nil
}

// look makes the value anew if the files have changed. mu is held.
func (w *Watched[T]) look(now time.Time) {
	defer w.looked.Store(now.UnixNano())
	current := w.current.Load()
	files, err := w.source.Read()
	if err != nil {
		w.refuse(nil, err)
		return
	}
	if files.Equal(current.files) {
		w.refused, w.refusedError = nil, ""
		w.warnOfTime(current, now)
		return
	}
	next, err := w.parse(files)
	if err == nil && CheckTime(current.leaf, now) == nil {
		err = CheckTime(next.leaf, now)
	}
	if err != nil {
		w.refuse(files, err)
		return
	}
	w.use(next)
	w.log.Info("the files have changed and are used", "what", w.source.Name)
}

// use makes v the current value.
func (w *Watched[T]) use(v *version[T]) {
	now := time.Now()
	w.current.Store(v)
	w.looked.Store(now.UnixNano())
	w.refused, w.refusedError = nil, ""
	w.warnOfTime(v, now)
}

// refuse logs what is wrong with the files, once.
func (w *Watched[T]) refuse(files Files, err error) {
	if w.refusedError == err.Error() && files.Equal(w.refused) {
		return
	}
	w.refused, w.refusedError = files, err.Error()
	w.log.Warn("the files have changed and cannot be used: those before are", "what", w.source.Name, "error", err)
}

// warnOfTime logs that the certificate is not valid now, once for each.
func (w *Watched[T]) warnOfTime(v *version[T], now time.Time) {
	if v.leaf == nil || w.expiryLogged == v.leaf {
		return
	}
	if err := CheckTime(v.leaf, now); err != nil {
		w.expiryLogged = v.leaf
		w.log.Warn("clients will refuse the certificate", "what", w.source.Name, "error", err)
	}
}
