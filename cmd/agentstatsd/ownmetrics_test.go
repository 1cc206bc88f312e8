package main

import (
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/bridge"
	"github.com/coder/agentstatsd/replica"
)

const (
	ownBegin = "<!-- own families: made by make generate -->\n"
	ownEnd   = "<!-- end of own families -->\n"
)

// TestDocsOwnMetrics keeps the table of the service's own families in docs/metrics.md
// equal to what is registered.
func TestDocsOwnMetrics(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "metrics.md")
	page, err := os.ReadFile(path)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(page), ownBegin)
	require.True(t, ok, "docs/metrics.md has no line %q", ownBegin)
	table, after, ok := strings.Cut(rest, ownEnd)
	require.True(t, ok, "docs/metrics.md has no line %q", ownEnd)

	want := ownTable(t)
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(before+ownBegin+want+ownEnd+after), 0o644))
		return
	}
	require.Equal(t, want, table, "run make generate")
}

// described matches the text of a prometheus.Desc, which has no other way in.
var described = regexp.MustCompile(`^Desc{fqName: ("(?:[^"\\]|\\.)*"), help: ("(?:[^"\\]|\\.)*"), unit: .*, constLabels: {(.*)}, variableLabels: {(.*)}}$`)

// constLabel matches the name of one constant label.
var constLabel = regexp.MustCompile(`(\w+)="(?:[^"\\]|\\.)*"`)

// ownTable renders the families that a service registers as Markdown.
func ownTable(t *testing.T) string {
	t.Helper()
	c := configWith(t, nil)
	c.dataDir, c.pprofAddress = t.TempDir(), "127.0.0.1:0"
	cert, key := newAuthority(t).issue(t, 1, "agentstatsd.test")
	c.tlsCertFile, c.tlsKeyFile = filepath.Join(c.dataDir, "cert.pem"), filepath.Join(c.dataDir, "key.pem")
	require.NoError(t, os.WriteFile(c.tlsCertFile, cert, 0o600))
	require.NoError(t, os.WriteFile(c.tlsKeyFile, key, 0o600))
	log, err := newLogger(new(strings.Builder), c)
	require.NoError(t, err)
	s, err := newService(t.Context(), c, log)
	require.NoError(t, err)
	defer s.close()
	// With a database that replicas share there are these as well.
	_, err = replica.New(nil, nil, replica.Options{}, s.registry, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	// A bridge has these.
	_, err = bridge.New(nil, bridge.Options{Upstream: &url.URL{Scheme: "http", Host: "coderd"}}, s.registry, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	_, err = bridge.NewRegistrations(nil, bridge.RegistrationsOptions{CoderURL: "http://coderd", TokenFile: "token"}, s.registry, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	_, err = bridge.NewTargets(nil, bridge.TargetsOptions{URLs: []string{"http://coderd:2112"}}, s.registry, slog.New(slog.DiscardHandler))
	require.NoError(t, err)

	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		s.registry.Describe(descs)
	}()
	rows := make(map[string]string)
	for desc := range descs {
		parts := described.FindStringSubmatch(desc.String())
		require.NotNil(t, parts, desc.String())
		name, err := strconv.Unquote(parts[1])
		require.NoError(t, err)
		help, err := strconv.Unquote(parts[2])
		require.NoError(t, err)
		if strings.HasPrefix(name, "agentstatsd_") {
			require.NotEmpty(t, help, name)
			var labels []string
			for _, label := range constLabel.FindAllStringSubmatch(parts[3], -1) {
				labels = append(labels, "`"+label[1]+"`")
			}
			for label := range strings.SplitSeq(parts[4], ",") {
				if label != "" {
					labels = append(labels, "`"+label+"`")
				}
			}
			rows[name] = fmt.Sprintf("| `%s` | %s | %s |\n", name, strings.Join(labels, ", "), strings.ReplaceAll(help, "|", `\|`))
		}
	}
	require.Greater(t, len(rows), 50)
	var b strings.Builder
	b.WriteString("\n| family | labels | help |\n| --- | --- | --- |\n")
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		b.WriteString(rows[name])
	}
	b.WriteString("\n")
	return b.String()
}
