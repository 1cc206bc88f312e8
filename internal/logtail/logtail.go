// Package logtail keeps the newest lines of a log.
package logtail

import (
	"bytes"
	"io"
	"slices"
	"sync"
)

// Bytes are those that a Writer keeps at most.
const Bytes = 1 << 20

// Writer passes on what is written, and keeps the newest lines. It may be used
// concurrently.
type Writer struct {
	next io.Writer

	mu sync.Mutex
	// Guarded by mu.

	// ring has the newest bytes. It grows to Bytes; from then on the oldest one is at end.
	ring []byte
	end  int
}

// New returns a Writer that passes on to next.
func New(next io.Writer) *Writer { return &Writer{next: next} }

// Write implements io.Writer. Its result is that of next.
func (w *Writer) Write(line []byte) (int, error) {
	w.keep(line)
	return w.next.Write(line)
}

func (w *Writer) keep(line []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	line = line[max(0, len(line)-Bytes):]
	if grow := min(len(line), Bytes-len(w.ring)); grow > 0 {
		w.ring = append(w.ring, line[:grow]...)
		line = line[grow:]
	}
	for len(line) > 0 {
		n := copy(w.ring[w.end:], line)
		line, w.end = line[n:], (w.end+n)%Bytes
	}
}

// Tail returns the newest lines, at most Bytes of them, each whole.
func (w *Writer) Tail() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.ring) < Bytes {
		return slices.Clone(w.ring)
	}
	tail := slices.Concat(w.ring[w.end:], w.ring[:w.end])
	return tail[bytes.IndexByte(tail, '\n')+1:] // the first one may have lost its beginning
}
