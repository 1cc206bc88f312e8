// Package statuses has what each replica said last of itself.
package statuses

import (
	"context"
	"database/sql"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Exchange stores the status of a replica at now, in nanoseconds by the database's clock,
// and returns those of others, the newest first. stored is false, and nothing is, if the
// replica has no row of its own. The others are at most most. Of one above mostBytes the
// text is nil.
func Exchange(ctx context.Context, tx *sql.Tx, self any, status []byte, now int64, most, mostBytes int) (others []agent.SavedStatus, stored bool, err error) {
	result, err := tx.ExecContext(ctx, `
INSERT INTO replica_statuses (id, saved_at, status) SELECT id, $2, $3 FROM replicas WHERE id = $1
ON CONFLICT (id) DO UPDATE SET saved_at = excluded.saved_at, status = excluded.status`, self, now, status)
	if err != nil {
		return nil, false, err
	}
	n, err := result.RowsAffected()
	if err != nil {
		return nil, false, err
	}
	rows, err := tx.QueryContext(ctx, `
SELECT id, saved_at, CASE WHEN length(status) <= $2 THEN status END FROM replica_statuses
WHERE id <> $1 ORDER BY saved_at DESC, id LIMIT $3`, self, mostBytes, most)
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var o agent.SavedStatus
		var at int64
		if err := rows.Scan(&o.Replica, &at, &o.Status); err != nil {
			return nil, false, err
		}
		o.Age = max(0, time.Duration(now-at))
		others = append(others, o)
	}
	return others, n > 0, rows.Err()
}
