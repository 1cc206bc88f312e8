package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/postgrestest"
)

// A replica that has just begun serves the families that testdata/fresh.tsv of the program
// has of a service, those with PostgreSQL too, and later on no series more of its own.
func TestFreshReplica(t *testing.T) {
	beside(t)
	table, err := os.ReadFile(filepath.Join("..", "cmd", "agentstatsd", "testdata", "fresh.tsv"))
	require.NoError(t, err)
	var want []string
	for line := range strings.Lines(string(table)) {
		column := strings.Split(line, "\t")
		if strings.HasPrefix(line, "#") || !strings.Contains(column[2], "service") || strings.HasPrefix(line, "agentstatsd_tls_") {
			continue // it has no certificate
		}
		want = append(want, column[0]+" "+column[1])
	}
	s := newService(t, "--database-url", postgrestest.Start(t).CreateDatabase(t))
	// No replica makes one.
	require.NoError(t, os.WriteFile(s.tokenFile(), []byte(uuid.NewString()), 0o600))
	s.start(t)
	_, body := s.scrape(t, "/metrics")
	var got []string
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+ \S+)$`).FindAllSubmatch(body, -1) {
		got = append(got, string(m[1]))
	}
	slices.Sort(want)
	slices.Sort(got)
	require.Equal(t, want, got)
	for _, series := range []string{
		`agentstatsd_component_ready{component="replica"} 1`, `agentstatsd_limit{what="database_conns"} 10`,
		`agentstatsd_go_sql_max_open_connections{db_name="postgres"} 10`,
	} {
		require.Contains(t, string(body), series+"\n")
	}

	// Whatever agents and coderd do, no series of the service's own is new: rate() sees the
	// first event of each.
	own := regexp.MustCompile(`(?m)^((?:agentstatsd_|grpc_server_|coderd_agentapi_metadata_)[^ ]+) `)
	seriesOf := func(body []byte) (series []string) {
		for _, m := range own.FindAllSubmatch(body, -1) {
			series = append(series, string(m[1]))
		}
		return series
	}
	require.NoError(t, startSimulation(t, s, "--agents", "20", "--metrics-per-agent", "5", "--metadata-keys", "3", "--duration", "3s").wait())
	_, after := s.scrape(t, "/metrics")
	require.NotEqual(t, string(body), string(after))
	require.ElementsMatch(t, seriesOf(body), seriesOf(after))
}
