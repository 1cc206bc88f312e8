package integration

import (
	"bytes"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/postgrestest"
)

// What agents reported waits in the database: all replicas are killed at once, again
// and again, and coderd receives each report once.
func TestWatchedReportsSurviveKills(t *testing.T) {
	beside(t)
	d := newDeployment(t, "killed", postgrestest.Shared(t).CreateDatabase(t), "")
	d.run(t, uuid.New())
	total := int64(0)
	for round := range int64(4) {
		const reports = 5
		value := fmt.Sprint("round ", round)
		d.send(t, reports, 1<<round, value)
		total += reports << round
		require.Eventually(t, func() bool {
			_, body := d.services[1].scrape(t, "/metrics")
			return sample(t, body, "agentstatsd_reports_written_total") >= reports && sample(t, body, "agentstatsd_report_sums_pending") == 0
		}, 30*time.Second, 50*time.Millisecond, "reports are not written")
		if round%2 == 0 {
			d.wait(t, total, value) // else they wait in the database
		}
		for _, s := range d.services {
			s.kill()
		}
		for _, s := range d.services {
			s.start(t)
			s.waitReady(t)
		}
	}
	d.wait(t, total, "round 3")
	time.Sleep(3 * time.Second) // what is sent twice would come
	d.mu.Lock()
	defer d.mu.Unlock()
	require.Equal(t, total, d.received)
}

// sample returns the value of a series without labels; 0 if there is none.
func sample(t *testing.T, exposition []byte, name string) float64 {
	t.Helper()
	for line := range bytes.Lines(exposition) {
		if value, found := bytes.CutPrefix(line, []byte(name+" ")); found {
			v, err := strconv.ParseFloat(string(bytes.TrimSpace(value)), 64)
			require.NoError(t, err)
			return v
		}
	}
	return 0
}
