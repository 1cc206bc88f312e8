package edgetest

import (
	"bytes"
	"sync"
)

// Log keeps what a service logs, as text.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write adds a line.
func (b *Log) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String returns all that was logged.
func (b *Log) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
