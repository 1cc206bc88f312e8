package store

import (
	"context"
	"database/sql"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store/internal/statuses"
)

// ExchangeStatus stores what the replica self says of itself, and returns what others said
// last, as package statuses says.
func (s *Store) ExchangeStatus(ctx context.Context, self agent.ID, status []byte, most, mostBytes int) (others []agent.SavedStatus, stored bool, err error) {
	err = s.change(ctx, "exchange status", func(tx *sql.Tx) error {
		now, err := s.dialect.clock(ctx, tx)
		if err != nil {
			return err
		}
		others, stored, err = statuses.Exchange(ctx, tx, s.dialect.id(self), status, now, most, mostBytes)
		return err
	})
	return others, stored, err
}
