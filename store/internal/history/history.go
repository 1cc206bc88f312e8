// Package history notices that an older database was restored, by what was seen of it.
package history

import "sync"

// History has the tokens of the revisions that were seen last. Each revision gets a random
// token. An older dump that is restored under running replicas goes on to the revisions
// that they have seen, but with other tokens.
type History struct {
	mu sync.Mutex
	// seen are the last one that was read and the last one that was made; guarded by mu.
	seen [2]struct{ revision, token int64 }
}

// Note remembers a revision in place of the older one.
func (h *History) Note(revision, token int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.seen {
		if h.seen[i].revision == revision {
			h.seen[i].token = token
			return
		}
	}
	h.seen[1], h.seen[0] = h.seen[0], struct{ revision, token int64 }{revision, token}
}

// Differs reports whether a revision was seen with another token.
func (h *History) Differs(revision, token int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.seen {
		if s.revision == revision {
			return s.token != token
		}
	}
	return false
}
