// Package database measures what a fleet makes of a PostgreSQL: whether tables and
// indexes stay as large as they are, and how much is written to the log.
package database

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coder/agentstatsd/bench/figure"
	"github.com/coder/agentstatsd/bench/process"
	"github.com/coder/agentstatsd/bench/stream"
	"github.com/coder/agentstatsd/internal/postgrestest"
)

// Section of the figures: a PostgreSQL under the load of a fleet.
const Section = "database"

// Metrics, of a table or of Log.
const (
	// Rows are the versions of rows that were written in a minute: inserts, updates and
	// deletions.
	Rows = "rows written a minute"
	// HeapOnly is the part of the updates that needed no new entry in an index.
	HeapOnly = "heap-only updates, percent"
	Dead     = "dead rows"
	// Heap includes what is too long for a row.
	Heap    = "heap, bytes"
	Index   = "indexes, bytes"
	Vacuums = "autovacuums so far"
	// LogBytes are written to the write-ahead log in a minute.
	LogBytes = "WAL, bytes a minute"
)

// Metrics in the order in which they are shown.
var Metrics = []string{LogBytes, Rows, HeapOnly, Dead, Heap, Index, Vacuums}

// Log is the subject of what is not of one table.
const Log = "write-ahead log"

// Tables that grow with a fleet, in the order of what is written to them.
var Tables = []string{"metadata", "report_sums", "agent_states", "sessions", "report_batches", "pushes", "agents", "workspaces"}

// Load is a fleet of relayed agents with 10 metadata keys, of which half change each
// 10 s. All are reported then. Coderd watches what they report.
type Load struct {
	Agents int
	// For is how long it goes on, Every the time between two samples of it.
	For, Every time.Duration
}

// Case names the figures of a load.
func (l Load) Case() string { return fmt.Sprintf("%d agents, %s", l.Agents, l.For) }

// connects bounds the time until all agents are connected.
const connects = 5 * time.Minute

// Measure adds the samples of a load to run, in their order, and writes them to the file
// database.csv in out.
func Measure(ctx context.Context, run *figure.Run, binary, dir, out string, l Load) (err error) {
	server, stop, err := postgrestest.Run(postgrestest.Durable())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	service, err := stream.StartAgentstatsd(ctx, binary, dir, "--adaptive-intervals=false",
		"--max-agents", strconv.Itoa(2*l.Agents), "--max-series", strconv.Itoa(100*l.Agents),
		"--database-url", server.URL())
	if err != nil {
		return err
	}
	defer service.Stop()
	agents, err := process.Start(ctx, binary, "simulate", "--target", service.GRPC, "--coderd-token-file", service.TokenFile,
		"--agents", strconv.Itoa(l.Agents), "--relay", "--connections", "4", "--metadata-changing", "5", "--metadata-repeated", "--watch")
	if err != nil {
		return err
	}
	defer agents.Kill()
	conn, err := pgx.Connect(ctx, server.URL())
	if err != nil {
		return fmt.Errorf("connect to the database: %w", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if err := awaitValues(ctx, conn, agents, l.Agents); err != nil {
		return err
	}
	file, err := os.Create(filepath.Join(out, "database.csv"))
	if err != nil {
		return fmt.Errorf("make the file of samples: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return l.sample(ctx, run, conn, agents, csv.NewWriter(file))
}

func (l Load) sample(ctx context.Context, run *figure.Run, conn *pgx.Conn, agents *process.Process, file *csv.Writer) error {
	if err := file.Write([]string{"seconds", "subject", "metric", "value"}); err != nil {
		return fmt.Errorf("write samples: %w", err)
	}
	ticker := time.NewTicker(l.Every)
	defer ticker.Stop()
	before, err := look(ctx, conn)
	if err != nil {
		return err
	}
	for began := before.at; before.at.Sub(began) < l.For-l.Every/2; {
		select {
		case <-ticker.C:
		case <-agents.Exited():
			return fmt.Errorf("the agents ended:\n%s", agents.Log())
		case <-ctx.Done():
			return ctx.Err()
		}
		now, err := look(ctx, conn)
		if err != nil {
			return err
		}
		for _, v := range now.since(before) {
			run.Add(figure.Key{Section: Section, Case: l.Case(), Subject: v.subject, Metric: v.metric}, v.value)
			err := file.Write([]string{
				strconv.FormatFloat(now.at.Sub(began).Seconds(), 'f', 0, 64), v.subject, v.metric, strconv.FormatFloat(v.value, 'f', -1, 64),
			})
			if err != nil {
				return fmt.Errorf("write samples: %w", err)
			}
		}
		if file.Flush(); file.Error() != nil {
			return fmt.Errorf("write samples: %w", file.Error())
		}
		before = now
	}
	return nil
}

// awaitValues waits until the database has the values of all agents.
func awaitValues(ctx context.Context, conn *pgx.Conn, agents *process.Process, n int) error {
	ctx, cancel := context.WithTimeout(ctx, connects)
	defer cancel()
	for {
		var have int
		if err := conn.QueryRow(ctx, `SELECT count(DISTINCT agent_id) FROM metadata`).Scan(&have); err != nil {
			return fmt.Errorf("count agents with values: %w", err)
		}
		if have == n {
			return nil
		}
		select {
		case <-time.After(time.Second):
		case <-agents.Exited():
			return fmt.Errorf("the agents ended:\n%s", agents.Log())
		case <-ctx.Done():
			return fmt.Errorf("%d of %d agents have values after %s:\n%s", have, n, connects, agents.Log())
		}
	}
}
