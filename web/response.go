package web

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

const (
	// knownLength is the largest size of a response to HTTP/1.0 that is buffered,
	// to send its length.
	knownLength = 1 << 20
	// lastWrite bounds the write of a buffered response.
	lastWrite = 30 * time.Second
)

// response is a response whose reader is watched. The goroutine of the handler uses
// it; others ask for the progress.
type response struct {
	http.ResponseWriter

	bytes   atomic.Int64
	blocked atomic.Int64 // ns in writes that have ended
	writing atomic.Int64 // start of the write that has not, Unix time in ns; 0: none
	cut     atomic.Bool

	// err is the first one of a write.
	err error
	// buffering is true while the response is buffered. code is its status, if one was
	// set.
	buffering bool
	buffered  []byte
	code      int
}

// Unwrap is for http.ResponseController.
func (r *response) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (r *response) WriteHeader(code int) {
	if r.buffering {
		if r.code == 0 {
			r.code = code
		}
		return
	}
	r.ResponseWriter.WriteHeader(code)
}

// Write implements http.ResponseWriter.
func (r *response) Write(p []byte) (int, error) {
	if r.buffering {
		if len(r.buffered)+len(p) <= knownLength {
			r.buffered = append(r.buffered, p...)
			return len(p), nil
		}
		if err := r.writeBuffered(); err != nil {
			return 0, err
		}
	}
	return r.write(p)
}

func (r *response) write(p []byte) (int, error) {
	start := time.Now()
	r.writing.Store(start.UnixNano())
	n, err := r.ResponseWriter.Write(p)
	r.done(start, err)
	r.bytes.Add(int64(n))
	return n, err
}

func (r *response) done(start time.Time, err error) {
	r.blocked.Add(int64(time.Since(start)))
	r.writing.Store(0)
	if err != nil && r.err == nil {
		r.err = err
	}
}

// writeBuffered writes what is buffered.
func (r *response) writeBuffered() error {
	kept := r.buffered
	r.buffering, r.buffered = false, nil
	if r.code != 0 {
		r.ResponseWriter.WriteHeader(r.code)
	}
	if len(kept) == 0 {
		return nil
	}
	_, err := r.write(kept)
	return err
}

// FlushError is for http.ResponseController.
func (r *response) FlushError() error {
	if r.buffering {
		return nil
	}
	start := time.Now()
	r.writing.Store(start.UnixNano())
	err := http.NewResponseController(r.ResponseWriter).Flush()
	r.done(start, err)
	return err
}

// Flush implements http.Flusher.
func (r *response) Flush() { _ = r.FlushError() }

// finish writes a response that is still buffered, with its length.
func (r *response) finish() {
	if !r.buffering {
		return
	}
	r.Header().Set("Content-Length", strconv.Itoa(len(r.buffered)))
	control := http.NewResponseController(r.ResponseWriter)
	_ = control.SetWriteDeadline(time.Now().Add(lastWrite))
	if err := r.writeBuffered(); err != nil {
		return
	}
	_ = r.FlushError()
}

// progress says how the reader does.
func (r *response) progress(now time.Time) progress {
	p := progress{bytes: r.bytes.Load(), blocked: time.Duration(r.blocked.Load())}
	if start := r.writing.Load(); start != 0 {
		p.stalled = time.Duration(now.UnixNano() - start)
		p.blocked += p.stalled
	}
	return p
}

// slow reports whether the reader took too long for one that is to be trusted.
func (r *response) slow() bool {
	blocked := time.Duration(r.blocked.Load())
	return blocked > stallAfter && float64(r.bytes.Load())/blocked.Seconds() < slowRateToTrusted
}
