package database

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// looked is what the database says of itself.
type looked struct {
	at     time.Time
	log    int64 // bytes so far
	tables map[string]table
}

// table is what is known of one. Counts are those so far.
type table struct {
	inserted, updated, heapOnly, deleted int64
	dead, heap, index, vacuums           int64
}

func look(ctx context.Context, conn *pgx.Conn) (looked, error) {
	l := looked{at: time.Now(), tables: make(map[string]table)}
	err := conn.QueryRow(ctx, `SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint`).Scan(&l.log)
	if err != nil {
		return l, fmt.Errorf("read the position of the log: %w", err)
	}
	rows, err := conn.Query(ctx, `
SELECT relname, n_tup_ins, n_tup_upd, n_tup_hot_upd, n_tup_del, n_dead_tup, pg_table_size(relid), pg_indexes_size(relid), autovacuum_count
FROM pg_stat_user_tables`)
	if err != nil {
		return l, fmt.Errorf("read the statistics of tables: %w", err)
	}
	var name string
	var t table
	_, err = pgx.ForEachRow(rows, []any{&name, &t.inserted, &t.updated, &t.heapOnly, &t.deleted, &t.dead, &t.heap, &t.index, &t.vacuums}, func() error {
		l.tables[name] = t
		return nil
	})
	if err != nil {
		return l, fmt.Errorf("read the statistics of tables: %w", err)
	}
	return l, nil
}

// value is one of a subject.
type value struct {
	subject, metric string
	value           float64
}

// since returns the values of the time since an earlier look.
func (l looked) since(before looked) []value {
	minutes := l.at.Sub(before.at).Minutes()
	list := []value{{Log, LogBytes, float64(l.log-before.log) / minutes}}
	for _, name := range Tables {
		now, was := l.tables[name], before.tables[name]
		updated := now.updated - was.updated
		written := now.inserted - was.inserted + updated + now.deleted - was.deleted
		list = append(list, value{name, Rows, float64(written) / minutes})
		if updated > 0 {
			list = append(list, value{name, HeapOnly, 100 * float64(now.heapOnly-was.heapOnly) / float64(updated)})
		}
		list = append(list,
			value{name, Dead, float64(now.dead)}, value{name, Heap, float64(now.heap)},
			value{name, Index, float64(now.index)}, value{name, Vacuums, float64(now.vacuums)})
	}
	return list
}

// Thirds returns what a series of samples was in its middle and in its last third.
func Thirds(values []float64) (middle, last []float64) {
	third := len(values) / 3
	return slices.Clone(values[third : len(values)-third]), slices.Clone(values[len(values)-third:])
}
