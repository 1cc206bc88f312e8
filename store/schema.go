package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store/internal/pgpool"
	"github.com/coder/agentstatsd/store/internal/schema"
)

// SchemaVersions returns the version of the schema, 0 if there is none yet, and the
// newest one that this program knows. It changes nothing. A SQLite file must exist.
func SchemaVersions(ctx context.Context, opts Options) (current, newest int64, err error) {
	err = withSchema(opts, func(db *sql.DB, s *schema.Schema) error {
		current, newest, err = s.Versions(ctx, db)
		return err
	})
	return current, newest, err
}

// MigrateTo takes the schema to a version, up or down, and returns the one before. On
// the way down what older programs cannot keep is lost. Nobody else may use a SQLite
// file meanwhile. On PostgreSQL the call first waits for lease to see whether replicas
// beat, and refuses if one does.
func MigrateTo(ctx context.Context, opts Options, version int64, lease time.Duration) (before int64, err error) {
	err = withSchema(opts, func(db *sql.DB, s *schema.Schema) error {
		if opts.URL == "" {
			before, err = s.To(ctx, db, version)
			return err
		}
		current, _, err := s.Versions(ctx, db)
		if err != nil {
			return err
		}
		if current > 0 {
			if err := noneBeats(ctx, db, lease); err != nil {
				return err
			}
		}
		return migratePostgres(ctx, db, func(ctx context.Context, m migration) error {
			before, err = s.To(ctx, m.db, version)
			return m.first.cause(err)
		})
	})
	return before, err
}

// withSchema opens the database as it is, and calls do.
func withSchema(opts Options, do func(*sql.DB, *schema.Schema) error) (err error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return fmt.Errorf("store options: %w", err)
	}
	var db *sql.DB
	d := &sqliteDialect
	if opts.URL != "" {
		d = &postgresDialect
		config, err := postgresConfig(opts)
		if err != nil {
			return err
		}
		db = pgpool.Open(config, 2).DB
	} else {
		file, err := filepath.Abs(opts.Path)
		if err != nil {
			return fmt.Errorf("locate database %s: %w", opts.Path, err)
		}
		db, err = sql.Open("sqlite", sqliteDSN(file, opts, url.Values{"mode": {"rw"}, "_txlock": {"immediate"}}))
		if err != nil {
			return fmt.Errorf("open database: %w", err)
		}
		db.SetMaxOpenConns(1)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := do(db, d.schema); err != nil {
		if reason := d.faultOf(err).reason; reason != "" {
			err = fmt.Errorf("%s: %w", reason, err)
		}
		return fmt.Errorf("open database: %w", err)
	}
	return nil
}

// noneBeats returns an error that names the replicas that beat within lease.
func noneBeats(ctx context.Context, db *sql.DB, lease time.Duration) error {
	before, err := heartbeats(ctx, db)
	if err != nil || len(before) == 0 {
		return err
	}
	timer := time.NewTimer(lease)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
	}
	after, err := heartbeats(ctx, db)
	if err != nil {
		return err
	}
	var names []string
	for id, r := range after {
		if old, ok := before[id]; !ok || old.Heartbeats != r.Heartbeats {
			names = append(names, r.Name)
		}
	}
	if len(names) > 0 {
		return fmt.Errorf("%d replicas use the database (%s): stop them first", len(names), strings.Join(names, ", "))
	}
	return nil
}

// heartbeats returns the replicas with their heartbeats.
func heartbeats(ctx context.Context, db *sql.DB) (map[agent.ID]agent.Replica, error) {
	replicas := make(map[agent.ID]agent.Replica)
	err := query(ctx, db, `SELECT id, name, beats FROM replicas`, nil, func(rows *sql.Rows) error {
		var r agent.Replica
		err := rows.Scan(&r.ID, &r.Name, &r.Heartbeats)
		replicas[r.ID] = r
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read replicas: %w", err)
	}
	return replicas, nil
}
