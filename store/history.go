package store

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"

	"github.com/coder/agentstatsd/agent"
)

// revisionsKept is how many revisions have their token in the database. A replica that
// is further behind reads all registrations.
const revisionsKept = 10_000

// history has the tokens of the revisions that were seen last. Each revision gets a random
// token. An older dump that is restored under running replicas goes on to the revisions
// that they have seen, but with other tokens.
type history struct {
	mu sync.Mutex
	// seen are the last one that was read and the last one that was made; guarded by mu.
	seen [2]struct{ revision, token int64 }
}

// note remembers a revision in place of the older one.
func (h *history) note(revision, token int64) {
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

// differs reports whether a revision was seen with another token.
func (h *history) differs(revision, token int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.seen {
		if s.revision == revision {
			return s.token != token
		}
	}
	return false
}

// noteRevision gives a revision its token. The one before it must be the one that was
// seen: otherwise the database was replaced, and the error wraps agent.ErrOutdated.
func (s *Store) noteRevision(ctx context.Context, tx *sql.Tx, revision int64) (token int64, err error) {
	var before int64
	err = query(ctx, tx, `SELECT token FROM revisions WHERE revision = $1`, []any{revision - 1}, func(rows *sql.Rows) error {
		return rows.Scan(&before)
	})
	if err != nil {
		return 0, err
	}
	if s.history.differs(revision-1, before) {
		return 0, fmt.Errorf("revision %d is another one: the database was replaced: %w", revision-1, agent.ErrOutdated)
	}
	token = 1 + rand.Int64N(math.MaxInt64)
	if _, err := tx.ExecContext(ctx, `INSERT INTO revisions (revision, token) VALUES ($1, $2)`, revision, token); err != nil {
		return 0, err
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM revisions WHERE revision <= $1`, revision-revisionsKept)
	return token, err
}
