package integration

import (
	"bufio"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/coder/agentstatsd/simulate"
)

// key is one metadata key of one agent.
type key struct {
	agent uuid.UUID
	name  string
}

// values are the numbers of the values of keys: a simulated value ends in " #"
// and its number, which rises.
type values map[key]int

// number returns the number in a simulated value, or in the error text if there
// is no value.
func number(t *testing.T, value, text string) int {
	t.Helper()
	n, err := numberOf(value, text)
	require.NoError(t, err)
	return n
}

func numberOf(value, text string) (int, error) {
	if value == "" {
		value = text
	}
	_, digits, ok := strings.Cut(value, " #")
	if !ok {
		return 0, fmt.Errorf("value %q has no number", value)
	}
	return strconv.Atoi(digits)
}

// journal returns the newest values that were acked as durable, as the
// simulation wrote them until now.
func journal(t *testing.T, path string) values {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	acked := make(values)
	r := bufio.NewReader(f)
	for {
		line, err := r.ReadBytes('\n')
		if err == io.EOF {
			return acked // a line that is being written is not there yet
		}
		require.NoError(t, err)
		var rec simulate.Record
		require.NoError(t, json.Unmarshal(line, &rec))
		k := key{rec.Agent, rec.Key}
		acked[k] = max(acked[k], number(t, rec.Value, rec.Error))
	}
}

// stored returns the values in the database of a service that does not run.
func stored(t *testing.T, path string) values {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path)
	require.NoError(t, err)
	defer db.Close()
	rows, err := db.QueryContext(t.Context(), `SELECT agent_id, key, value, error FROM metadata`)
	require.NoError(t, err)
	defer rows.Close()
	found := make(values)
	for rows.Next() {
		var id []byte
		var name, value, text string
		require.NoError(t, rows.Scan(&id, &name, &value, &text))
		agent, err := uuid.FromBytes(id)
		require.NoError(t, err)
		found[key{agent, name}] = number(t, value, text)
	}
	require.NoError(t, rows.Err())
	return found
}

// requireDurable fails if a value that was acked as durable is not in the
// database, nor a newer one of its key.
func requireDurable(t *testing.T, acked, found values) {
	t.Helper()
	for k, n := range acked {
		require.GreaterOrEqual(t, found[k], n, "%s of agent %s: value %d was acked as durable", k.name, k.agent, n)
	}
}

// TestCrashes kills the service again and again while a fleet reports, and looks
// into the database each time. With -soak the fleet has the size and the
// intervals of a deployment.
func TestCrashes(t *testing.T) {
	beside(t)
	c := crashes{agents: 100, kills: 3, every: 2 * time.Second, metadataInterval: 500 * time.Millisecond, reportInterval: time.Second}
	if *soak {
		c = crashes{agents: 2000, kills: 5, every: 12 * time.Second, metadataInterval: 10 * time.Second, reportInterval: 30 * time.Second}
	}
	runCrashes(t, c)
}

type crashes struct {
	agents, kills                    int
	every                            time.Duration
	metadataInterval, reportInterval time.Duration
}

func runCrashes(t *testing.T, c crashes) {
	// An agent sends again what was not acked before a kill, also if it was served: one
	// report at most if acks come soon.
	s := newService(t, "--report-interval", c.reportInterval.String(), "--ack-delay", "50ms", "--metadata-flush-interval", "500ms")
	s.start(t)
	journalFile := filepath.Join(t.TempDir(), "journal")
	sim := startSimulation(t, s, "--agents", fmt.Sprint(c.agents), "--metrics-per-agent", "30", "--metadata-keys", "10",
		"--metadata-interval", c.metadataInterval.String(),
		"--journal", journalFile, "--keep")

	durable := 0
	var before map[agentLabels]received
	for range c.kills {
		time.Sleep(c.every)
		before = scrapeBytes(t, s)
		s.kill()
		// What was acked before the kill is in the journal: the simulation has
		// nothing to read any more.
		time.Sleep(100 * time.Millisecond)
		acked := journal(t, journalFile)
		requireDurable(t, acked, stored(t, s.database()))
		durable = len(acked)
		s.start(t)
	}
	require.Positive(t, durable, "something was acked before the last kill")

	time.Sleep(c.every)
	require.NoError(t, sim.stop())
	var summary simulate.Summary
	require.NoError(t, json.Unmarshal(sim.stdout.Bytes(), &summary))
	require.Zero(t, summary.Errors)
	require.Zero(t, summary.Refused)
	require.Equal(t, summary.ReportsSent, summary.ReportsAcked)
	require.Equal(t, summary.MetadataSent, summary.MetadataAcked)
	// An agent whose wait is longer than the service lived comes back later.
	require.GreaterOrEqual(t, summary.Reconnects, int64(c.agents*c.kills*9/10), "the agents came back after the kills")
	t.Logf("%s", &sim.stdout)

	requireBytesOnce(t, before, scrapeBytes(t, s))
	took, err := s.stop(syscall.SIGTERM)
	require.NoError(t, err)
	require.Less(t, took, 15*time.Second)
	// The newest value of every key is acked, and is what the database has.
	require.Equal(t, journal(t, journalFile), stored(t, s.database()))
}
