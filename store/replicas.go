package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// RecordHeartbeat counts up the heartbeats of the replica me, and stores its name,
// load, configuration and phase. It renews the lease if me is the holder. me takes the lease if it is free, or
// if its heartbeats equal takeover; below 0: only if it is free. It returns all
// replicas, ordered by id, and the lease, as they are after that. All is one
// transaction.
func (s *Store) RecordHeartbeat(ctx context.Context, me agent.Replica, takeover int64) (replicas []agent.Replica, lease agent.Lease, err error) {
	id, nobody := s.dialect.id(me.ID), s.dialect.id(agent.ID{})
	err = s.change(ctx, "record heartbeat", func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `
INSERT INTO replicas (id, name, beats, load_cpu, load_pending_age, load_flush, config, phase) VALUES ($1, $2, 1, $3, $4, $5, $6, $7)
ON CONFLICT (id) DO UPDATE SET name = excluded.name, beats = replicas.beats + 1, config = excluded.config, phase = excluded.phase,
    load_cpu = excluded.load_cpu, load_pending_age = excluded.load_pending_age, load_flush = excluded.load_flush`,
			id, me.Name, me.Load.CPU, me.Load.PendingAge, me.Load.Flush, me.Config, me.Phase)
		if err != nil {
			return fmt.Errorf("count: %w", err)
		}
		_, err = tx.ExecContext(ctx, `
UPDATE lease SET holder = $1, beats = beats + 1
WHERE holder = $1 OR holder = $2 OR beats = $3`, id, nobody, takeover)
		if err != nil {
			return fmt.Errorf("take lease: %w", err)
		}
		if lease, err = readLease(ctx, tx); err != nil {
			return fmt.Errorf("read lease: %w", err)
		}
		replicas = nil
		if err := s.stream(ctx, tx, pageOfReplicas, `
SELECT id, name, beats, load_cpu, load_pending_age, load_flush, config, phase FROM replicas ORDER BY id`, nil, func(rows *sql.Rows) error {
			var r agent.Replica
			err := rows.Scan(&r.ID, &r.Name, &r.Heartbeats, &r.Load.CPU, &r.Load.PendingAge, &r.Load.Flush, &r.Config, &r.Phase)
			replicas = append(replicas, r)
			return err
		}); err != nil {
			return fmt.Errorf("read replicas: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, agent.Lease{}, err
	}
	return replicas, lease, nil
}

// Clock returns the time of the database, of SQLite that of this machine.
func (s *Store) Clock(ctx context.Context) (time.Time, error) {
	var now int64
	err := s.view(ctx, "read clock", func(tx *sql.Tx) (err error) {
		now, err = s.dialect.clock(ctx, tx)
		return err
	})
	return time.Unix(0, now), err
}

// Lease returns the lease.
func (s *Store) Lease(ctx context.Context) (lease agent.Lease, err error) {
	err = s.read(ctx, "read lease", func(q querier) (err error) {
		lease, err = readLease(ctx, q)
		return err
	})
	return lease, err
}

func readLease(ctx context.Context, q querier) (lease agent.Lease, err error) {
	err = query(ctx, q, `SELECT holder, beats, interval_factor FROM lease`, nil, func(rows *sql.Rows) error {
		return rows.Scan(&lease.Holder, &lease.Heartbeats, &lease.IntervalFactor)
	})
	return lease, err
}

// SaveIntervalFactor stores the factor that holder decided. While the lease is free
// holder is the zero id. If holder does not have the lease, the error wraps
// agent.ErrOutdated.
func (s *Store) SaveIntervalFactor(ctx context.Context, holder agent.ID, factor float64) error {
	return s.change(ctx, "save interval factor", func(tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, `UPDATE lease SET interval_factor = $2 WHERE holder = $1`, s.dialect.id(holder), factor)
		if err != nil {
			return err
		}
		n, err := result.RowsAffected()
		if err == nil && n == 0 {
			err = fmt.Errorf("replica %s has not the lease: %w", holder, agent.ErrOutdated)
		}
		return err
	})
}

// NoteGone gives replicas the phase agent.ReplicaGone that have still the same number of
// heartbeats. Their next heartbeat replaces it. Left out are unknown ones, and rows that
// another transaction has locked: heartbeats wait for this.
func (s *Store) NoteGone(ctx context.Context, replicas []agent.Replica) error {
	if len(replicas) == 0 {
		return nil
	}
	return s.change(ctx, "note gone replicas", func(tx *sql.Tx) error {
		for _, r := range replicas {
			_, err := tx.ExecContext(ctx, `UPDATE replicas SET phase = $1 WHERE id IN (
    SELECT id FROM replicas WHERE id = $2 AND beats = $3`+s.dialect.forUpdateUnlocked+`)`, agent.ReplicaGone, s.dialect.id(r.ID), r.Heartbeats)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// RemoveReplicas removes replicas, and frees the lease if one of them has it. Unknown
// ones are ignored.
func (s *Store) RemoveReplicas(ctx context.Context, ids []agent.ID) error {
	if len(ids) == 0 {
		return nil
	}
	ids = inOrderIDs(ids)
	return s.change(ctx, "remove replicas", func(tx *sql.Tx) error {
		if _, err := s.dialect.exec(ctx, tx, s.dialect.queries.deleteReplica, s.idRows(ids)); err != nil {
			return err
		}
		_, err := s.dialect.exec(ctx, tx, s.dialect.queries.freeLease, s.idRows(ids, s.dialect.id(agent.ID{})))
		return err
	})
}
