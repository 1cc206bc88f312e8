package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/serpent"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/handshake"
	"github.com/coder/agentstatsd/intervals"
	"github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/optiontable"
	"github.com/coder/agentstatsd/pushed"
	"github.com/coder/agentstatsd/replica"
	"github.com/coder/agentstatsd/reports"
	"github.com/coder/agentstatsd/web"
)

// wiring is what an option reaches: fields of components' options, or what effect
// returns, which differs with it.
type wiring struct {
	fields []string
	effect func(t *testing.T, c *config) string
	// value that it gets; empty: another one than the default.
	value string
	// with are the other options that it has an effect with.
	with map[string]string
}

func to(fields ...string) wiring { return wiring{fields: fields} }

// tlsFiles exist and are no certificates.
var tlsFiles = map[string]string{
	"tls-cert-file": "config_test.go", "tls-key-file": "config_test.go", "tls-client-ca-file": "config_test.go", "coderd-client-san": "coderd",
}

// slots is what bounds scrapes or pages: how many at once, and in a second.
func slots(make func(*config, http.Handler, prometheus.Registerer) (*web.Slots, error)) wiring {
	return wiring{effect: func(t *testing.T, c *config) string {
		made, err := make(c, http.NotFoundHandler(), prometheus.NewRegistry())
		require.NoError(t, err)
		atOnce, perSecond := made.Limits()
		return fmt.Sprint(atOnce, perSecond)
	}}
}

// wirings are of every option.
var wirings = map[string]wiring{
	"config": {effect: func(t *testing.T, c *config) string {
		_, err := parse(t, "", nil, "--config", c.configFile)
		return fmt.Sprint(err)
	}},
	"prometheus-enable":                   {effect: listeners},
	"prometheus-address":                  {effect: listeners, value: "127.0.0.2:0"},
	"prometheus-collect-agent-stats":      {effect: func(_ *testing.T, c *config) string { return fmt.Sprintf("%T", (&service{config: c}).stats()) }},
	"prometheus-aggregate-agent-stats-by": {fields: []string{"aggregator.GroupBy"}, value: "username"},
	"prometheus-extra-labels":             {fields: []string{"fleet.UpTemplateVersion"}, value: "template_version"},
	"prometheus-workspace-info":           to("aggregator.WorkspaceInfo", "fleet.WorkspaceInfo"),
	"max-concurrent-scrapes":              slots((*config).newScrapes),
	"max-scrapes-per-second":              slots((*config).newScrapes),
	"max-concurrent-pages":                slots((*config).newPages),
	"max-pages-per-second":                slots((*config).newPages),
	"web-show-metadata":                   to("console.ShowMetadata"),
	"scrape-timeout":                      to("scrape.WriteTimeout"),
	"max-http-connections":                to("http.MaxConns", "pprof.MaxConns", "probes.MaxConns"),
	"max-http-connections-per-address":    to("http.MaxConnsPerAddress", "pprof.MaxConnsPerAddress", "probes.MaxConnsPerAddress"),
	"web-config-file":                     {effect: beforeTheDisk},
	"web-external-url":                    {effect: func(_ *testing.T, c *config) string { return c.identity().URL }, value: "https://stats.example.com/a"},
	"web-enable-lifecycle":                {effect: func(_ *testing.T, c *config) string { return fmt.Sprint(c.enableLifecycle) }}, // TestReload
	"pprof-address":                       {effect: listeners, value: "127.0.0.2:0"},
	"probe-address":                       {effect: listeners, value: "127.0.0.2:0"},

	"grpc-address": {effect: listeners, value: "127.0.0.2:0"},
	"grpc-allow-plaintext": {
		effect: func(_ *testing.T, c *config) string { return fmt.Sprint(c.validate()) },
		with:   map[string]string{"grpc-address": "0.0.0.0:0"},
	},
	"tls-cert-file":                        {effect: beforeTheDisk, with: tlsFiles},
	"tls-key-file":                         {effect: beforeTheDisk, with: tlsFiles},
	"tls-client-ca-file":                   {effect: beforeTheDisk, with: tlsFiles},
	"coderd-client-san":                    to("server.CoderdClientSAN"),
	"push-token-file":                      {effect: func(_ *testing.T, c *config) string { return c.pushTokenFile }},
	"operator-token-file":                  {effect: func(_ *testing.T, c *config) string { return c.operatorTokenFile }},
	"coderd-token-file":                    {effect: func(_ *testing.T, c *config) string { return c.tokenFile() }},
	"tls-max-handshakes":                   to("grpc handshakes.Max", "http.Handshakes.Max"),
	"tls-max-handshakes-per-address":       to("grpc handshakes.MaxPerAddress", "http.Handshakes.MaxPerAddress"),
	"tls-handshake-timeout":                to("grpc handshakes.Timeout", "http.Handshakes.Timeout"),
	"max-message-bytes":                    to("server.MaxMessageBytes"),
	"max-receiving-bytes":                  to("server.MaxReceivingBytes"),
	"grpc-message-timeout":                 to("server.MessageTimeout"),
	"grpc-max-streams":                     to("server.MaxStreams"),
	"max-lookups":                          to("fleet.MaxLookups"),
	"grpc-max-connections":                 to("server.MaxConnections"),
	"grpc-max-unauthenticated-connections": to("server.MaxStrangersPerAddress"),
	"grpc-max-unauthenticated-calls":       to("server.MaxStrangerCalls"),
	"grpc-unauthenticated-rate":            to("server.StrangerRate"),
	"grpc-agent-call-rate":                 to("server.AgentCallRate"),
	"grpc-unauthenticated-burst":           to("server.StrangerBurst"),
	"grpc-max-open-calls":                  to("server.MaxOpenCalls"),
	"grpc-authentication-timeout":          to("server.AuthenticationTimeout"),
	"grpc-first-message-timeout":           to("server.HelloTimeout"),
	"grpc-idle-timeout":                    to("server.ConnectionIdleTimeout"),
	"grpc-reflection": {
		effect: func(_ *testing.T, c *config) string { return fmt.Sprint(c.reflection()) },
		with:   map[string]string{"grpc-address": "0.0.0.0:0"},
	},
	"max-coderd-calls":          to("server.MaxCoderdCalls"),
	"max-watches":               to("coderd.MaxWatches", "server.MaxUnreadOfCoderd"),
	"max-watch-bytes":           to("coderd.MaxWatchBytes"),
	"max-watches-bytes":         to("coderd.MaxWatchesBytes"),
	"grpc-send-timeout":         to("server.SendTimeout"),
	"stats-retention":           to("reports.Retention"),
	"max-report-subscriptions":  to("reports.MaxSubscriptions"),
	"max-report-sums":           to("reports.MaxSums"),
	"max-report-sum-bytes":      to("reports.MaxSumBytes"),
	"reports-max-pending":       to("reports.MaxPending"),
	"reports-max-pending-bytes": to("reports.MaxPendingBytes"),
	"drain-timeout":             to("server.DrainTimeout", "servers"),

	"data-dir":                     {fields: []string{"store.Path"}, effect: func(_ *testing.T, c *config) string { return c.tokenFile() }},
	"database-url":                 {fields: []string{"store.URL"}, effect: engine, value: "postgres://127.0.0.1:1/d"},
	"database-max-conns":           to("store.MaxConns"),
	"database-transaction-pooling": to("store.TransactionPooling"),
	"pubsub-url":                   {effect: engine, value: "nats://127.0.0.1:1"},
	"deployment-id":                to("store.DeploymentID"),
	"lease-duration":               to("replica.LeaseDuration"),

	"report-interval":          to("agents.ReportInterval", "aggregator.ReportInterval"),
	"adaptive-intervals":       to("intervals.MaxFactor", "agents.LongestInterval", "server.IdleTimeout"),
	"target-cpu-percent":       to("intervals.TargetCPU"),
	"target-pending-age":       to("intervals.TargetPendingAge"),
	"target-flush-percent":     to("intervals.TargetFlush"),
	"session-age":              to("fleet.SessionAge"),
	"max-agents":               to("fleet.MaxAgents"),
	"max-registrations-bytes":  to("fleet.MaxBytes"),
	"max-registration-bytes":   to("coderd.MaxRegistrationBytes"),
	"max-sync-bytes":           to("coderd.MaxSyncBytes"),
	"max-syncs":                to("coderd.MaxSyncs"),
	"sync-timeout":             to("coderd.SyncTimeout"),
	"max-agent-message-bytes":  to("server.MaxAgentMessageBytes"),
	"max-streams-per-agent":    to("server.MaxStreamsPerAgent"),
	"max-relay-streams":        to("agents.MaxRelayStreams"),
	"max-relayed-sessions":     to("agents.MaxRelayedSessions"),
	"agent-idle-timeout":       to("server.IdleTimeout", "agents.LongestInterval"),
	"ack-delay":                to("agents.AckDelay"),
	"agent-goodbye-timeout":    to("agents.GoodbyeTimeout"),
	"agent-message-rate":       to("fleet.MessagesPerSecond"),
	"agent-message-burst":      to("fleet.MessagesBurst"),
	"agent-byte-rate":          to("fleet.BytesPerSecond"),
	"agent-byte-burst":         to("fleet.BytesBurst"),
	"agent-refused-rate":       to("fleet.RefusedPerSecond"),
	"agent-refused-burst":      to("fleet.RefusedBurst"),
	"max-refused-agents":       to("refusals.MaxAgents"),
	"max-refused-agents-bytes": to("refusals.MaxBytes"),
	"series-ttl": {
		fields: []string{"aggregator.SeriesTTL", "pushed.SeriesTTL", "agents.LongestInterval", "server.IdleTimeout"}, value: "10m",
	},
	"max-series":                 to("aggregator.MaxSeries"),
	"max-series-per-agent":       to("aggregator.MaxSeriesPerAgent", "agents.Limits.Series"),
	"max-series-per-owner":       to("aggregator.MaxSeriesPerOwner"),
	"max-series-bytes":           to("aggregator.MaxSeriesBytes"),
	"max-series-bytes-per-agent": to("aggregator.MaxSeriesBytesPerAgent"),
	"max-series-bytes-per-owner": to("aggregator.MaxSeriesBytesPerOwner"),
	"max-families":               to("aggregator.MaxFamilies"),
	"max-families-per-agent":     to("aggregator.MaxFamiliesPerAgent"),

	"max-coderd-instances":         to("pushed.MaxInstances", "coderd.MaxPushes"),
	"max-pushed-series":            to("pushed.MaxSeries"),
	"max-pushed-series-total":      to("pushed.MaxTotalSeries"),
	"max-pushed-families":          to("pushed.MaxFamilies"),
	"max-push-bytes":               to("coderd.MaxPushBytes"),
	"max-push-row-bytes":           to("pushed.MaxRowBytes"),
	"max-pushed-label-value-bytes": to("pushed.MaxLabelValueBytes"),
	"max-pushed-labels-bytes":      to("pushed.MaxLabelsBytes"),
	"push-merge":                   {fields: []string{"pushed.Merge"}, value: "coderd_x=max"},
	"max-pushes-bytes":             to("coderd.MaxPushesBytes"),

	"metadata-flush-interval":        to("batcher.FlushInterval", "intervals.FlushInterval", "agents.FlushInterval"),
	"metadata-batch-size":            to("batcher.BatchSize"),
	"metadata-max-pending":           to("batcher.MaxPending"),
	"metadata-max-pending-per-agent": to("batcher.MaxPendingPerAgent"),
	"metadata-max-pending-per-owner": to("batcher.MaxPendingPerOwner"),
	"metadata-max-keys":              to("fleet.MaxMetadataKeys"),
	"metadata-max-declared-keys":     to("coderd.MaxDeclaredKeys"),
	"metadata-reread-interval":       to("coderd.WatchInterval"),
	"metadata-touch-interval":        to("store.TouchInterval", "batcher.TouchInterval"),

	"log-format":         {effect: logged, value: "json"},
	"log-level":          {effect: logged, value: "debug"},
	"log-max-per-minute": {effect: logged},
}

// withoutOption are the fields of components' options that no option sets, and why.
var withoutOption = map[string][]string{
	"of the process": {"store.Name", "replica.Name", "replica.ID", "reports.ID", "reports.Shared", "http.Name", "pprof.Name", "probes.Name"},
	"a component":    {"pushed.Lease", "pushed.Notifier", "scrape.Hidden", "scrape.Headers", "scrape.Log", "coderd.StoreReady", "aggregator.Expired"},
	"made of several options or of files": {
		"http.Config", "server.Credentials", "server.Tokens.Coderd", "server.Tokens.Push", "server.Tokens.Operator", "server.Reflection",
	},
	"pprof is on loopback, without TLS, and as slow as it is asked to be, probes have none": {
		"probes.Config", "probes.Handshakes.Max", "probes.Handshakes.MaxPerAddress", "probes.Handshakes.Timeout",
		"pprof.Config", "pprof.WriteTimeout", "pprof.Handshakes.Max", "pprof.Handshakes.MaxPerAddress", "pprof.Handshakes.Timeout",
	},
	"of the contract": {
		"agents.Limits.MetadataKeyBytes", "agents.Limits.MetadataReportKeyBytes", "agents.Limits.MetadataValueBytes", "agents.Limits.MetadataErrorBytes",
	},
	"bounds a call or a pause within the service": {
		"store.StatementTimeout", "store.BusyTimeout", "batcher.FlushTimeout", "batcher.ShutdownTimeout", "batcher.PublishTimeout",
		"pushed.StoreTimeout", "pushed.FollowInterval", "fleet.WriteInterval", "fleet.WriteTimeout", "fleet.FollowInterval", "http.WriteTimeout", "probes.WriteTimeout",
	},
	"what docs promise": {
		"pushed.FoldAfter", "pushed.ForgetAfter", "pushed.OwnFor", "reports.Lease", "fleet.SessionGrace", "fleet.InstanceRetention",
	},
	"nobody needs another one": {
		"store.ReadConns", "store.RemovalsKept", "store.NamedKept", "refusals.MaxSums", "refusals.MaxTemplateLabels", "refusals.MaxLines",
	},
	"of tests": {"fleet.Now", "fleet.Random", "batcher.Random", "pushed.Random", "intervals.CPU"},
}

// TestOptionsReachTheirComponents sets one option after another, and looks which fields
// of components' options, or what else, it changes.
func TestOptionsReachTheirComponents(t *testing.T) {
	seen := make(map[string]bool)
	for _, names := range withoutOption {
		for _, name := range names {
			seen[name] = true
		}
	}
	var all []string
	for _, o := range new(config).options() {
		all = append(all, o.Flag)
		w, known := wirings[o.Flag]
		require.True(t, known, "--%s: say what it reaches", o.Flag)
		t.Run(o.Flag, func(t *testing.T) {
			value := w.value
			if value == "" {
				value = another(t, o)
			}
			before := configWith(t, w.with)
			with := map[string]string{o.Flag: value}
			for flag, value := range w.with {
				if flag != o.Flag {
					with[flag] = value
				}
			}
			after := configWith(t, with)
			got := changed(t, before, after)
			slices.Sort(w.fields)
			require.Equal(t, w.fields, got)
			for _, name := range got {
				seen[name] = true
			}
			if w.effect != nil {
				require.NotEqual(t, w.effect(t, before), w.effect(t, after))
			}
			require.True(t, w.effect != nil || len(w.fields) > 0)
		})
	}
	for flag := range wirings {
		require.Contains(t, all, flag)
	}
	var unset []string
	for name := range components(t, configWith(t, nil)) {
		if !seen[name] {
			unset = append(unset, name)
		}
	}
	require.Empty(t, unset, "fields that no option sets")
}

// configWith returns the defaults with some options set, and ports that are free.
func configWith(t *testing.T, set map[string]string) *config {
	t.Helper()
	c := new(config)
	options := c.options()
	require.NoError(t, options.SetDefaults())
	c.grpcAddress, c.prometheusAddress = "127.0.0.1:0", "127.0.0.1:0"
	for flag, value := range set {
		i := slices.IndexFunc(options, func(o serpent.Option) bool { return o.Flag == flag })
		require.GreaterOrEqual(t, i, 0, flag)
		if options[i].Value.Type() == optiontable.List {
			require.NoError(t, options[i].Value.Set(""))
		}
		require.NoError(t, options[i].Value.Set(value))
	}
	return c
}

// another returns a value of the option's type that is not the default.
func another(t *testing.T, o serpent.Option) string {
	t.Helper()
	switch o.Value.Type() {
	case optiontable.Integer:
		n, err := strconv.ParseInt(o.Default, 10, 64)
		require.NoError(t, err)
		return strconv.FormatInt(n+1, 10)
	case optiontable.SizeType:
		var b optiontable.Bytes
		require.NoError(t, b.Set(o.Default))
		return strconv.FormatInt(int64(b)+1, 10)
	case "duration":
		d, err := time.ParseDuration(o.Default)
		require.NoError(t, err)
		return (d + time.Second).String()
	case "bool":
		on, err := strconv.ParseBool(o.Default)
		require.NoError(t, err)
		return strconv.FormatBool(!on)
	}
	return filepath.Join(t.TempDir(), "another")
}

// components returns the fields of all components' options by their names.
func components(t *testing.T, c *config) map[string]any {
	t.Helper()
	merges, err := metrics.ParseMerges(c.pushMerge)
	require.NoError(t, err)
	fields := make(map[string]any)
	for name, options := range map[string]any{
		"store": c.storeOptions(), "replica": c.replicaOptions(), "aggregator": c.aggregatorOptions(), "batcher": c.batcherOptions(),
		"fleet": c.fleetOptions(), "refusals": c.refusalsOptions(), "pushed": c.pushedOptions(merges), "reports": c.reportsOptions(), "server": c.serverOptions(),
		"agents": c.agentServiceOptions(), "coderd": c.coderdServiceOptions(), "intervals": c.intervalsOptions(),
		"scrape": c.scrapeOptions(), "console": c.consoleOptions(), "http": c.httpOptions(), "pprof": c.pprofOptions(), "probes": c.probeOptions(), "grpc handshakes": c.handshakes(),
	} {
		flatten(name, reflect.ValueOf(options), fields)
	}
	for _, stage := range (&service{config: c}).stages() {
		if stage.Name == "servers" {
			fields[stage.Name] = stage.Timeout
		}
	}
	return fields
}

// flatten puts the fields of a struct of options into fields, those of one of ours
// within it by themselves.
func flatten(name string, v reflect.Value, fields map[string]any) {
	if v.Kind() == reflect.Struct && strings.HasPrefix(v.Type().PkgPath(), "github.com/coder/agentstatsd/") {
		for i := range v.NumField() {
			flatten(name+"."+v.Type().Field(i).Name, v.Field(i), fields)
		}
		return
	}
	fields[name] = v.Interface()
}

// changed returns the names of the fields that differ, in order.
func changed(t *testing.T, before, after *config) []string {
	t.Helper()
	var names []string
	was, is := components(t, before), components(t, after)
	for name := range is {
		if reflect.ValueOf(is[name]).Kind() != reflect.Func && !reflect.DeepEqual(was[name], is[name]) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// listeners says on which hosts a service listens.
func listeners(t *testing.T, c *config) string {
	s := &service{config: c, log: slog.New(slog.DiscardHandler), registry: metrics.NewRegistry()}
	require.NoError(t, s.listen(t.Context()))
	defer s.close()
	hosts := ""
	for _, lis := range []net.Listener{s.grpcListener, s.httpListener, s.pprofListener, s.probeListener} {
		hosts += " "
		if lis != nil {
			host, _, err := net.SplitHostPort(lis.Addr().String())
			require.NoError(t, err)
			hosts += host
		}
	}
	return hosts
}

// beforeTheDisk returns the error of a start, which is one of a file that is read before
// anything is made, or of the data directory.
func beforeTheDisk(t *testing.T, c *config) string {
	c.dataDir = filepath.Join("config_test.go", "data") // cannot be made
	_, err := newService(t.Context(), c, slog.New(slog.DiscardHandler))
	require.Error(t, err)
	return err.Error()
}

// engine returns what carries messages.
func engine(t *testing.T, c *config) string {
	s := &service{config: c, log: slog.New(slog.DiscardHandler)}
	engine, err := s.newEngine(prometheus.NewRegistry(), "name")
	require.NoError(t, err)
	return fmt.Sprintf("%T", engine)
}

// logged returns which lines are logged, and how.
func logged(t *testing.T, c *config) string {
	var out bytes.Buffer
	log, err := newLogger(&out, c)
	require.NoError(t, err)
	log.Debug("quiet")
	for range 100 {
		log.Info("often")
	}
	lines := strings.Split(out.String(), "\n")
	return fmt.Sprint(len(lines), strings.Contains(out.String(), "quiet"), out.String()[:1])
}

// TestComponentsTakeWhatFlagsAllow gives options small and large values. No component
// may refuse what the checks of flags let through. That would be after the data
// directory was made, and name no flag.
func TestComponentsTakeWhatFlagsAllow(t *testing.T) {
	for _, o := range new(config).options() {
		for exponent := -1; exponent < 63; exponent += 2 {
			n := int64(0)
			if exponent >= 0 {
				n = 1 << exponent
			}
			value := strconv.FormatInt(n, 10)
			switch o.Value.Type() {
			case optiontable.Integer, optiontable.SizeType:
			case "duration":
				value = time.Duration(n).String()
			default:
				continue
			}
			c, err := parse(t, "", nil, "--"+o.Flag, value)
			if err == nil {
				require.NoError(t, build(c), "--%s %s", o.Flag, value)
			}
		}
	}
}

// build makes the components of a configuration over nothing.
func build(c *config) error {
	log := slog.New(slog.DiscardHandler)
	reg := prometheus.NewRegistry()
	series, err := aggregator.New(c.aggregatorOptions(), reg)
	if err != nil {
		return err
	}
	pending, err := batcher.New(nil, nil, c.batcherOptions(), reg, log)
	if err != nil {
		return err
	}
	agents, err := fleet.New(nil, series, pending, c.fleetOptions(), reg, log)
	if err != nil {
		return err
	}
	families, err := pushed.New(nil, series, c.pushedOptions(nil), reg, log)
	if err != nil {
		return err
	}
	watched, err := reports.New(nil, c.reportsOptions(), reg, log)
	if err != nil {
		return err
	}
	if _, err := replica.New(nil, nil, c.replicaOptions(), reg, log); err != nil {
		return err
	}
	if _, err := handshake.New(c.handshakes(), "grpc", reg, log); err != nil {
		return err
	}
	if _, err := c.newScrapes(http.NotFoundHandler(), reg); err != nil {
		return err
	}
	if _, err := c.newPages(http.NotFoundHandler(), reg); err != nil {
		return err
	}
	if _, err := intervals.New(pending, nil, c.intervalsOptions(), reg, log); err != nil {
		return err
	}
	server, err := grpcserver.New(agents, c.serverOptions(), reg, log)
	if err != nil {
		return err
	}
	if _, err = agentapi.New(server, agentapi.Components{Fleet: agents, Stats: series, Metadata: pending, Reports: watched}, c.agentServiceOptions(), reg, log); err != nil {
		return err
	}
	_, err = coderdapi.New(server, coderdapi.Components{Fleet: agents, Pushes: families, Reports: watched}, c.coderdServiceOptions(), reg, log)
	return err
}
