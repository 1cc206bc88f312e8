package simulate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/client"
)

// Record is one line of a journal: the service said that the value, or a newer
// one of its key, is in the database. Values, and error texts where there is no
// value, end in " #" and the number of the value, which rises from 1.
type Record struct {
	Agent uuid.UUID `json:"agent"`
	Key   string    `json:"key"`
	Value string    `json:"value"`
	Error string    `json:"error,omitempty"`
	// At is when the ack arrived.
	At time.Time `json:"at"`
}

// journal writes records. After an error it writes no more.
type journal struct {
	mu  sync.Mutex
	w   io.Writer
	err error
}

func (j *journal) write(agent uuid.UUID, entries []client.Metadata) {
	now := time.Now()
	lines := make([][]byte, len(entries))
	for i, m := range entries {
		// A Record can always be encoded as JSON.
		line, _ := json.Marshal(Record{Agent: agent, Key: m.Key, Value: m.Value, Error: m.Error, At: now})
		lines[i] = append(line, '\n')
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err == nil {
		_, j.err = j.w.Write(bytes.Join(lines, nil))
	}
}

func (j *journal) failed() error {
	if j == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return fmt.Errorf("write journal: %w", j.err)
	}
	return nil
}
