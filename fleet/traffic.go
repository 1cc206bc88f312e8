package fleet

import (
	"iter"

	"github.com/coder/agentstatsd/agent"
)

// Traffic is what an agent has sent to this process since it is registered there.
type Traffic struct {
	Messages int64
	Bytes    int64 // of these
}

// Traffic iterates over the registered agents with what they have sent, ordered by id. A
// registration is valid until yield returns, as in All.
func (f *Fleet) Traffic() iter.Seq2[*agent.Registration, Traffic] {
	return func(yield func(*agent.Registration, Traffic) bool) {
		for reg := range f.All {
			e, err := f.entry(reg.ID)
			if err != nil {
				continue // it was removed meanwhile
			}
			e.mu.Lock()
			traffic := e.history().traffic
			e.mu.Unlock()
			if !yield(reg, traffic) {
				return
			}
		}
	}
}
