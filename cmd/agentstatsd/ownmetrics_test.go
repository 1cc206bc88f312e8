package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/codertest"
	"github.com/coder/agentstatsd/internal/documented"
	"github.com/coder/agentstatsd/internal/freeport"
	"github.com/coder/agentstatsd/replica"
)

// The processes that have a family, as testdata/fresh.tsv and docs/metrics.md name them.
const (
	ofService  = "service"
	ofReplicas = "service with PostgreSQL"
	ofBridge   = "bridge"
)

// familyOf is what a scrape in text has of a family.
type familyOf struct {
	typ, help string
	// values of each label; nil: there is no series.
	values map[string]map[string]bool
}

// varying are labels whose values differ between machines, builds and deployments.
var varying = []string{"version", "revision", "branch", "tags", "goversion", "goos", "goarch", "target"}

var labelPair = regexp.MustCompile(`(\w+)="((?:[^"\\]|\\.)*)"`)

// parseScrape takes a scrape in text apart. Samples follow the TYPE of their family.
func parseScrape(t *testing.T, text string) map[string]*familyOf {
	t.Helper()
	families := make(map[string]*familyOf)
	var last *familyOf
	help := make(map[string]string)
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "# HELP "); ok {
			name, text, _ := strings.Cut(rest, " ")
			help[name] = text
			continue
		}
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, typ, _ := strings.Cut(rest, " ")
			require.NotContains(t, families, name, "it is there twice")
			last = &familyOf{typ: typ, help: help[name]}
			families[name] = last
			continue
		}
		require.NotNil(t, last, line)
		if last.values == nil {
			last.values = make(map[string]map[string]bool)
		}
		labels := line[:strings.LastIndexByte(line, ' ')]
		if begin := strings.IndexByte(labels, '{'); begin >= 0 {
			for _, pair := range labelPair.FindAllStringSubmatch(labels[begin:], -1) {
				if pair[1] == "le" || pair[1] == "quantile" {
					continue
				}
				if last.values[pair[1]] == nil {
					last.values[pair[1]] = make(map[string]bool)
				}
				last.values[pair[1]][pair[2]] = true
			}
		}
	}
	return families
}

// scrapeOf returns the first whole scrape of what run serves at address, which has all of
// texts.
func scrapeOf(t *testing.T, address string, run func(context.Context) error, texts ...string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	url := "http://" + address + "/metrics"
	for _, text := range texts {
		awaitText(t, url, text)
	}
	scrape, err := get(url)
	require.NoError(t, err)
	cancel()
	require.NoError(t, <-ended)
	return scrape
}

// What servers and targets have once they run, a moment after the start.
const (
	callsKnown   = "grpc_server_started_total{"
	targetsKnown = "agentstatsd_bridge_scrape_samples{"
)

// certificate sets the files of one, profiles and probes.
func (c *config) certificate(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	cert, key := newAuthority(t).issue(t, 1, "agentstatsd.test")
	c.tlsCertFile, c.tlsKeyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(c.tlsCertFile, cert, 0o600))
	require.NoError(t, os.WriteFile(c.tlsKeyFile, key, 0o600))
	c.dataDir, c.prometheusAddress, c.pprofAddress, c.probeAddress = filepath.Join(dir, "data"), freeport.Addr(), "127.0.0.1:0", "127.0.0.1:0"
}

// wholeBridge sets all that a bridge can do. Nobody answers it.
func (b *bridgeConfig) wholeBridge(t *testing.T) {
	t.Helper()
	b.certificate(t)
	b.listen, b.upstream, b.coderURL = freeport.Addr(), "http://127.0.0.1:1", "http://127.0.0.1:1"
	b.coderTokenFile = codertest.TokenFile(t, "abcdefghij-0123456789abcdefghijkl")
	b.coderdMetricsURLs = []string{"http://127.0.0.1:1/"}
	b.drainDelay, b.drainTimeout, b.closeTimeout = 0, time.Millisecond, time.Millisecond
}

// freshScrapes returns a scrape of each process that has just begun.
func freshScrapes(t *testing.T) (service, replicas, bridge, allInOne string) {
	t.Helper()
	c := configWith(t, nil)
	c.certificate(t)
	logger := func(c *config) *slog.Logger {
		log, err := newLogger(io.Discard, c)
		require.NoError(t, err)
		return log
	}
	s, err := newService(t.Context(), c, logger(c))
	require.NoError(t, err)
	service = scrapeOf(t, c.prometheusAddress, func(ctx context.Context) error { return s.run(ctx) }, callsKnown)

	reg := prometheus.NewRegistry()
	_, err = replica.New(nil, nil, c.replicaOptions(), reg, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	families, err := reg.Gather()
	require.NoError(t, err)
	var text bytes.Buffer
	for _, f := range families {
		_, err := expfmt.MetricFamilyToText(&text, f)
		require.NoError(t, err)
	}

	b := bridgeWith(t, nil)
	b.wholeBridge(t)
	require.NoError(t, b.validate())
	bridge = scrapeOf(t, b.prometheusAddress, func(ctx context.Context) error { return runBridge(ctx, b, logger(&b.config)) }, targetsKnown)

	both := new(bridgeConfig)
	options := both.allInOneOptions()
	require.NoError(t, options.SetDefaults())
	both.wholeBridge(t)
	both.grpcAddress = freeport.Addr()
	require.NoError(t, both.validateAllInOne())
	allInOne = scrapeOf(t, both.prometheusAddress, func(ctx context.Context) error { return runAllInOne(ctx, both, logger(&both.config)) }, callsKnown, targetsKnown)
	return service, text.String(), bridge, allInOne
}

// row is a family with the processes that have it.
type row struct {
	familyOf
	of []string
}

// labels returns the labels with their values, as the table has them.
func (r *row) labels() string {
	if r.values == nil {
		return "no series"
	}
	var labels []string
	for _, name := range slices.Sorted(maps.Keys(r.values)) {
		values := "*"
		if !slices.Contains(varying, name) {
			values = strings.Join(slices.Sorted(maps.Keys(r.values[name])), "|")
		}
		labels = append(labels, name+"="+values)
	}
	return strings.Join(labels, " ")
}

// rowsOf puts the families of processes together.
func rowsOf(t *testing.T, processes map[string]string) map[string]*row {
	t.Helper()
	rows := make(map[string]*row)
	for _, of := range slices.Sorted(maps.Keys(processes)) {
		for name, f := range parseScrape(t, processes[of]) {
			known := rows[name]
			if known == nil {
				rows[name] = &row{*f, []string{of}}
				continue
			}
			require.Equal(t, known.typ, f.typ, name)
			require.Equal(t, known.help, f.help, name)
			known.of = append(known.of, of)
			if known.values == nil {
				known.values = f.values
			}
			for label, values := range f.values {
				if known.values[label] == nil {
					known.values[label] = values
				}
				maps.Copy(known.values[label], values)
			}
		}
	}
	return rows
}

// isOwn reports whether the family is documented in the table of own families.
func isOwn(name string) bool {
	return strings.HasPrefix(name, "agentstatsd_") || strings.HasPrefix(name, "grpc_server_")
}

const (
	ownBegin = "<!-- own families: made by make generate -->\n"
	ownEnd   = "<!-- end of own families -->\n"
)

// A process that has just begun serves each family that it ever can, as testdata/fresh.tsv
// has them: a series for each value that a label is known to have, else HELP and TYPE. All
// documented families are among them. docs/metrics.md has the service's own.
func TestFreshScrape(t *testing.T) {
	service, replicas, bridge, allInOne := freshScrapes(t)
	rows := rowsOf(t, map[string]string{ofService: service, ofReplicas: replicas, ofBridge: bridge})

	t.Run("table", func(t *testing.T) {
		var b strings.Builder
		b.WriteString("# family\ttype\tprocesses\tlabels, each with the values that it has from the start; *: they vary\n")
		for _, name := range slices.Sorted(maps.Keys(rows)) {
			r := rows[name]
			fmt.Fprintf(&b, "%s\t%s\t%s\t%s\n", name, r.typ, strings.Join(r.of, ", "), r.labels())
		}
		path := filepath.Join("testdata", "fresh.tsv")
		if *update {
			require.NoError(t, os.WriteFile(path, []byte(b.String()), 0o644))
			return
		}
		want, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, string(want), b.String(), "run make generate, and look at what changes")
	})

	t.Run("documented", func(t *testing.T) {
		for _, d := range documented.Families() {
			r := rows[d.Name]
			require.NotNil(t, r, d.Name)
			require.Equal(t, d.Type, r.typ, d.Name)
			require.Contains(t, r.of, ofService, d.Name)
			if d.Origin != "runtime" {
				require.Equal(t, d.Help, r.help, d.Name)
			}
		}
	})

	t.Run("all-in-one", func(t *testing.T) {
		want := rowsOf(t, map[string]string{ofService: service, ofBridge: bridge})
		got := parseScrape(t, allInOne)
		require.Equal(t, slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got)))
		for name, f := range got {
			// It has its certificate once.
			delete(f.values, "listener")
			delete(want[name].values, "listener")
			require.Equal(t, want[name].labels(), (&row{*f, nil}).labels(), name)
		}
	})

	t.Run("lint", func(t *testing.T) {
		for _, scrape := range []string{service, replicas, bridge} {
			problems, err := promlint.New(strings.NewReader(scrape)).Lint()
			require.NoError(t, err)
			for _, p := range problems {
				require.False(t, isOwn(p.Metric), "%s: %s", p.Metric, p.Text)
			}
		}
		for name := range rows {
			// In OpenMetrics both would be one family.
			require.False(t, isOwn(name) && rows[name+"_total"] != nil, "%s and %[1]s_total", name)
		}
	})

	limits := limitsTable(t, service, bridge)
	t.Run("docs", func(t *testing.T) {
		path := filepath.Join("..", "..", "docs", "metrics.md")
		page, err := os.ReadFile(path)
		require.NoError(t, err)
		before, rest, ok := strings.Cut(string(page), ownBegin)
		require.True(t, ok, "docs/metrics.md has no line %q", ownBegin)
		table, after, ok := strings.Cut(rest, ownEnd)
		require.True(t, ok, "docs/metrics.md has no line %q", ownEnd)
		want := ownTable(t, rows) + limits
		if *update {
			require.NoError(t, os.WriteFile(path, []byte(before+ownBegin+want+ownEnd+after), 0o644))
			return
		}
		require.Equal(t, want, table, "run make generate")
	})
}

// ownTable renders the service's own families as Markdown.
func ownTable(t *testing.T, rows map[string]*row) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "matters.tsv"))
	require.NoError(t, err)
	matters := make(map[string]string)
	for line := range strings.Lines(string(data)) {
		name, text, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		require.True(t, ok && matters[name] == "", line)
		require.True(t, isOwn(name) && rows[name] != nil, "testdata/matters.tsv: %s is no family", name)
		matters[name] = text
	}
	escape := strings.NewReplacer("|", `\|`, `\\`, `\`).Replace
	var b strings.Builder
	b.WriteString("\n| family | type | labels | of | what it is | when it matters |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		if !isOwn(name) {
			continue
		}
		r := rows[name]
		require.NotEmpty(t, r.help, name)
		require.NotEmpty(t, matters[name], "testdata/matters.tsv: say when %s matters", name)
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", name, r.typ, r.docsLabels(), strings.Join(r.of, ", "), escape(r.help), escape(matters[name]))
	}
	b.WriteString("\n")
	return b.String()
}

// docsLabels returns the labels, with their values if these are few.
func (r *row) docsLabels() string {
	var labels []string
	for _, name := range slices.Sorted(maps.Keys(r.values)) {
		label := "`" + name + "`"
		if values := slices.Sorted(maps.Keys(r.values[name])); !slices.Contains(varying, name) && len(values) <= 32 && !strings.HasPrefix(name, "grpc_") {
			label += ": " + strings.Join(values, ", ")
		}
		labels = append(labels, label)
	}
	return strings.Join(labels, "; ")
}

// withoutUsage are limits of which nothing is used, each with the counter of what exceeds
// it; empty: whoever exceeds it waits.
var withoutUsage = map[string]string{
	"agent_message_bytes":       `agentstatsd_grpc_limited_total{reason="message_bytes"}`,
	"coder_requests_per_second": "",
	"grpc_streams":              "",
	"log_per_minute":            "agentstatsd_log_lines_suppressed_total",
	"message_bytes":             `agentstatsd_grpc_limited_total{reason="message_bytes"}`,
	"metadata_declared_keys":    `agentstatsd_registrations_total{outcome="refused"}`,
	"metadata_keys":             `agentstatsd_metadata_refused_keys_total{reason="too_many_keys"}`,
	"pages_per_second":          "",
	"push_bytes":                "agentstatsd_push_oversized_total",
	"pushed_label_value_bytes":  `agentstatsd_pushed_series_refused_total{reason="label_value_too_long"}`,
	"pushed_labels_bytes":       `agentstatsd_pushed_series_refused_total{reason="labels_too_long"}`,
	"registration_bytes":        `agentstatsd_registrations_total{outcome="refused"}`,
	"scrape_bytes":              `agentstatsd_bridge_scrapes_total{outcome="too_large"}`,
	"scrapes_per_second":        "agentstatsd_scrapes_refused_total",
	"watch_bytes":               `agentstatsd_coderd_memory_refused_total{kind="watches"}`,
}

var (
	limitLine = regexp.MustCompile(`(?m)^agentstatsd_limit\{what="([^"]+)"\} (\S+)$`)
	usageLine = regexp.MustCompile(`(?m)^agentstatsd_usage\{what="([^"]+)"\} (\S+)$`)
)

// limitsTable renders each option that is a limit, with its limit and what is used of it, as
// Markdown. It fails if one is not served, or not as it is set.
func limitsTable(t *testing.T, scrapes ...string) string {
	t.Helper()
	// The first word of what is the option, a second one its listener.
	option := func(what string) string { name, _, _ := strings.Cut(what, "/"); return name }
	limits, usages := make(map[string]float64), make(map[string]bool)
	for _, scrape := range scrapes {
		for _, m := range limitLine.FindAllStringSubmatch(scrape, -1) {
			value, err := strconv.ParseFloat(m[2], 64)
			require.NoError(t, err)
			limits[option(m[1])] = value
		}
		for _, m := range usageLine.FindAllStringSubmatch(scrape, -1) {
			usages[option(m[1])] = true
		}
	}
	limits["database_conns"], usages["database_conns"] = 10, true // with PostgreSQL: see TestPools of store

	var b strings.Builder
	b.WriteString("### Limits\n\n`agentstatsd_limit` and `agentstatsd_usage` by their label `what`. Where each listener has the limit, its name follows a slash.\n" +
		"A limit of one message, of one agent's or stream's content, or of a rate has no usage, as nothing is used of it between two of\n" +
		"them: the counter of what exceeded it stands in its place. How near to it others are, nothing says.\n" +
		"\n| option | what | used of it |\n| --- | --- | --- |\n")
	known := make(map[string]bool)
	options := append(new(config).options(), new(bridgeConfig).options()...)
	for _, o := range options {
		words := strings.Split(o.Flag, "-")
		i := slices.Index(words, "max")
		if i < 0 {
			continue
		}
		what := strings.Join(slices.Delete(words, i, i+1), "_")
		if known[what] {
			continue
		}
		known[what] = true
		require.Contains(t, limits, what, "--%s: register its limit, by ownmetrics.RegisterLimits", o.Flag)
		if want, err := strconv.ParseFloat(o.Default, 64); err == nil && want != 0 {
			require.InDelta(t, want, limits[what], 0, "--%s", o.Flag)
		}
		counted, without := withoutUsage[what]
		require.NotEqual(t, without, usages[what], "--%s: want what is used of it, or a row of withoutUsage", o.Flag)
		used := "`agentstatsd_usage`"
		switch {
		case without && counted != "":
			name, labels, _ := strings.Cut(strings.TrimSuffix(counted, "}"), "{")
			series := regexp.MustCompile(`(?m)^` + name + `(\{(.*,)?` + regexp.QuoteMeta(labels) + `(,.*)?\})? `)
			require.True(t, slices.ContainsFunc(scrapes, series.MatchString), "withoutUsage: nothing serves %s", counted)
			used = "counted by `" + counted + "`"
		case without:
			used = "whoever exceeds it waits"
		}
		fmt.Fprintf(&b, "| `--%s` | `%s` | %s |\n", o.Flag, what, used)
	}
	for what := range limits {
		require.True(t, known[what], "%s is of no option", what)
	}
	b.WriteString("\n")
	return b.String()
}
