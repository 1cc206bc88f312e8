package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coder/serpent"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the tables of docs/configuration.md and docs/metrics.md")

// TestConfigurationTables keeps the tables of docs/configuration.md equal to the options.
func TestConfigurationTables(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "configuration.md")
	for name, options := range map[string]serpent.OptionSet{
		"options":        new(config).options(),
		"bridge options": new(bridgeConfig).options(),
	} {
		tableBegin, tableEnd := "<!-- "+name+": made by make generate -->\n", "<!-- end of "+name+" -->\n"
		page, err := os.ReadFile(path)
		require.NoError(t, err)
		before, rest, ok := strings.Cut(string(page), tableBegin)
		require.True(t, ok, "docs/configuration.md has no line %q", tableBegin)
		table, after, ok := strings.Cut(rest, tableEnd)
		require.True(t, ok, "docs/configuration.md has no line %q", tableEnd)

		want := optionsTable(options)
		if *update {
			require.NoError(t, os.WriteFile(path, []byte(before+tableBegin+want+tableEnd+after), 0o644))
			continue
		}
		require.Equal(t, want, table, "run make generate")
	}
}

// optionsTable renders options as Markdown, a table for each group.
func optionsTable(options serpent.OptionSet) string {
	var b strings.Builder
	var group *serpent.Group
	for i, o := range options {
		if i == 0 || o.Group != group {
			group = o.Group
			if group != nil {
				fmt.Fprintf(&b, "\n**%s.** %s\n", group.Name, group.Description)
			}
			b.WriteString("\n| flag | environment | YAML | default | |\n| --- | --- | --- | --- | --- |\n")
		}
		fmt.Fprintf(&b, "| `--%s` | `%s` | %s | %s | %s |\n", o.Flag, o.Env, code(o.YAMLPath()), code(o.Default), o.Description)
	}
	b.WriteString("\n")
	return b.String()
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}

func TestOptionsAreComplete(t *testing.T) {
	for _, o := range append(new(config).options(), new(bridgeConfig).options()...) {
		require.NotEmpty(t, o.Description, o.Flag)
		require.True(t, strings.HasSuffix(o.Description, "."), "%s: description ends in a full stop", o.Flag)
		require.NotEmpty(t, o.Env, o.Flag)
		if o.Flag != "config" {
			require.NotEmpty(t, o.YAML, o.Flag)
			require.NotNil(t, o.Group, o.Flag)
		}
	}
}

// parse returns the configuration that args, env and a YAML file make, or the
// error.
func parse(t *testing.T, yaml string, env []serpent.EnvVar, args ...string) (*config, error) {
	t.Helper()
	if yaml != "" {
		path := filepath.Join(t.TempDir(), "config.yaml")
		require.NoError(t, os.WriteFile(path, []byte(yaml), 0o600))
		args = append(args, "--config", path)
	}
	c := new(config)
	inv := (&serpent.Command{
		Use:        "serve",
		Options:    c.options(),
		Middleware: configured(c, c.validate, nil),
		Handler:    func(*serpent.Invocation) error { return nil },
	}).Invoke(args...)
	inv.Environ = env
	return c, inv.Run()
}

func TestConfigSources(t *testing.T) {
	c, err := parse(t, "metadata:\n  batch_size: 7\n  flush_interval: 3s\nprometheus:\n  address: 127.0.0.1:1\n",
		[]serpent.EnvVar{{Name: "AGENTSTATSD_METADATA_BATCH_SIZE", Value: "8"}, {Name: "CODER_PROMETHEUS_ADDRESS", Value: "127.0.0.1:2"}},
		"--metadata-batch-size", "9")
	require.NoError(t, err)
	require.EqualValues(t, 9, c.metadataBatchSize, "a flag wins over the environment")
	require.Equal(t, "127.0.0.1:2", c.prometheusAddress, "the environment wins over the file")
	require.Equal(t, "3s", c.metadataFlushInterval.String(), "the file wins over the default")
	require.EqualValues(t, 500000, c.metadataMaxPending)
}

func TestConfigErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"ttl below two intervals": {[]string{"--series-ttl", "59s"}, "--series-ttl 59s is below twice --report-interval 30s"},
		"certificate without key": {[]string{"--tls-cert-file", "x"}, "--tls-cert-file and --tls-key-file need each other"},
		"client CA without TLS":   {[]string{"--tls-client-ca-file", "x", "--coderd-client-san", "y"}, "--tls-client-ca-file needs --tls-cert-file"},
		"client CA without name":  {[]string{"--tls-cert-file", "x", "--tls-key-file", "x", "--tls-client-ca-file", "x"}, "--tls-client-ca-file and --coderd-client-san need each other"},
		"plaintext beyond loopback": {[]string{"--grpc-address", "0.0.0.0:2113"},
			"--grpc-address 0.0.0.0:2113 is beyond loopback: give --tls-cert-file and --tls-key-file, or --grpc-allow-plaintext"},
		"plaintext on all addresses": {[]string{"--grpc-address", ":2113"}, "is beyond loopback"},
		"address without port":       {[]string{"--grpc-address", "127.0.0.1"}, `--grpc-address "127.0.0.1": want host:port`},
		"batch size":                 {[]string{"--metadata-batch-size", "0"}, "0 is below the least value 1"},
		"report interval":            {[]string{"--report-interval", "10ms"}, "10ms is below the least value 1s"},
		"session age":                {[]string{"--session-age", "-1s"}, "-1s is neither 0s nor at least 10s"},
		"ack delay of nothing":       {[]string{"--ack-delay", "0s"}, "0s is below the least value 1ms"},
		"long ack delay":             {[]string{"--ack-delay", "61s"}, "1m1s is above the largest value 1m0s"},
		"short session age":          {[]string{"--session-age", "9s"}, "9s is neither 0s nor at least 10s"},
		"short retention":            {[]string{"--stats-retention", "59s"}, "59s is below the least value 1m0s"},
		"large batch":                {[]string{"--metadata-batch-size", "10001"}, "10001 is above the largest value 10000"},
		"number that overflows":      {[]string{"--max-message-bytes", "9223372036854775807"}, "9223372036854775807 is above the largest value 1TiB"},
		"time that overflows":        {[]string{"--report-interval", "1000000h"}, "1000000h0m0s is above the largest value 87600h0m0s"},
		"page's URL without a host":  {[]string{"--web-external-url", "https:///a"}, "--web-external-url: want a URL of at most 256 bytes such as https://"},
		"page's URL with a password": {[]string{"--web-external-url", "https://a:b@host/"}, "without user, query and fragment"},
		"page's URL with a query":    {[]string{"--web-external-url", "https://host/?a"}, "--web-external-url: want"},
		"page's URL of no browser":   {[]string{"--web-external-url", "postgres://host/"}, "--web-external-url: want"},
		"long URL of the page":       {[]string{"--web-external-url", "https://host/" + strings.Repeat("a", 250)}, "--web-external-url: want"},
		"unknown label":              {[]string{"--prometheus-aggregate-agent-stats-by", "user"}, `--prometheus-aggregate-agent-stats-by: "user" is none of agent_name, template_name, username, workspace_name`},
		"label twice":                {[]string{"--prometheus-aggregate-agent-stats-by", "username,username"}, "--prometheus-aggregate-agent-stats-by: username is named twice"},
		"unknown extra label":        {[]string{"--prometheus-extra-labels", "template_version,version"}, `--prometheus-extra-labels: "version" is none of template_version`},
		"extra label twice":          {[]string{"--prometheus-extra-labels", "template_version,template_version"}, "--prometheus-extra-labels: template_version is named twice"},
		"address with blanks":        {[]string{"--prometheus-address", " 127.0.0.1:1 "}, `--prometheus-address " 127.0.0.1:1 ": want host:port`},
		"address without brackets":   {[]string{"--prometheus-address", "::1:2112"}, "too many colons in address"},
		"address of a port only":     {[]string{"--prometheus-address", "2112"}, "missing port in address"},
		"large port":                 {[]string{"--pprof-address", "127.0.0.1:99999"}, `--pprof-address "127.0.0.1:99999": want host:port, such as 127.0.0.1:2112: port "99999"`},
		"socket":                     {[]string{"--grpc-address", "unix:/tmp/x"}, "--grpc-address"},
		"URL as an address":          {[]string{"--prometheus-address", "http://127.0.0.1:1"}, "--prometheus-address"},
		"database with a newline":    {[]string{"--database-url", "postgres://u:hunter2@h/d\n"}, "--database-url holds a blank or a control character"},
		"database of a bad escape":   {[]string{"--database-url", "postgres://u:hunter2%zz@h/d"}, "--database-url is not a URL"},
		"log level":                  {[]string{"--log-level", "loud"}, "loud"},
		"database scheme":            {[]string{"--database-url", "mysql://u:hunter2@h/d"}, "--database-url: want a URL with the scheme postgres, or none"},
		"database without scheme":    {[]string{"--database-url", "u:hunter2@h/d"}, "--database-url: want a URL with the scheme postgres, or none"},
		"pubsub scheme":              {[]string{"--pubsub-url", "redis://u:hunter2@h"}, "--pubsub-url: want a URL with the scheme nats, tls or postgres, or none"},
		"pooling without database":   {[]string{"--database-transaction-pooling", "--pubsub-url", "nats://h"}, "--database-transaction-pooling needs --database-url"},
		"pooling without pubsub":     {[]string{"--database-transaction-pooling", "--database-url", "postgres://h/d"}, "--database-transaction-pooling needs --pubsub-url"},
		"connections above files":    {[]string{"--grpc-max-connections", "1000000000"}, fmt.Sprintf("--grpc-max-connections: want at most %d, nine tenths of the files that the process may open, got 1000000000", maxConnections())},
		"agent idle timeout":         {[]string{"--agent-idle-timeout", "59s"}, "--agent-idle-timeout 59s is below twice --report-interval 30s"},
		"keys above pending":         {[]string{"--metadata-max-declared-keys", "1001", "--max-watch-bytes", "20000000"}, "--metadata-max-pending-per-agent (1000) is below --metadata-max-declared-keys (1001)"},
		"undeclared keys":            {[]string{"--metadata-max-keys", "1001", "--max-watch-bytes", "20000000"}, "--metadata-max-pending-per-agent (1000) is below --metadata-max-keys (1001)"},
		"keys above owner's share":   {[]string{"--metadata-max-pending", "1000"}, "a quarter of --metadata-max-pending (250) is below --metadata-max-declared-keys (256)"},
		"keys above a read":          {[]string{"--metadata-max-declared-keys", "400"}, "half of --max-watch-bytes (2097152) is below 5248 bytes for each of --metadata-max-declared-keys (400)"},
		"batch above pending":        {[]string{"--metadata-max-pending", "1100", "--metadata-batch-size", "1101"}, "--metadata-max-pending (1100) is below --metadata-batch-size (1101)"},
		"agent's message":            {[]string{"--max-agent-message-bytes", "4194305"}, "--max-message-bytes (4194304) is below --max-agent-message-bytes (4194305)"},
		"message above reads":        {[]string{"--max-message-bytes", "11184811"}, "--max-watches-bytes (67108864) is below six times --max-message-bytes (11184811)"},
		"message above receiving":    {[]string{"--max-receiving-bytes", "8388607"}, "--max-receiving-bytes (8388607) is below twice --max-message-bytes (4194304)"},
		"streams of a connection":    {[]string{"--grpc-max-streams", "4294967296"}, "4294967296 is above the largest value 2147483647"},
		"lookups":                    {[]string{"--max-lookups", "0"}, "0 is below the least value 1"},
		"sync timeout":               {[]string{"--sync-timeout", "0s"}, "0s is not longer than 0s"},
		"watch above watches":        {[]string{"--max-watch-bytes", "67108865"}, "--max-watches-bytes (67108864) is below --max-watch-bytes (67108865)"},
		"push above pushes":          {[]string{"--max-push-bytes", "67108865"}, "--max-pushes-bytes (67108864) is below --max-push-bytes (67108865)"},
		"agent idle below zero":      {[]string{"--agent-idle-timeout", "-1s"}, "-1s is below the least value 0s"},
		"open calls":                 {[]string{"--grpc-max-open-calls", "15"}, "15 is below the least value 16"},
		"unauthenticated rate":       {[]string{"--grpc-unauthenticated-rate", "0"}, "0 is below the least value 1"},
		"handshakes":                 {[]string{"--tls-max-handshakes", "0"}, "0 is below the least value 1"},
		"handshake timeout":          {[]string{"--tls-handshake-timeout", "0s"}, "0s is not longer than 0s"},
		"lease":                      {[]string{"--lease-duration", "1s"}, "1s is below the least value 2s"},
		"merge without a way":        {[]string{"--push-merge", "x"}, `--push-merge: "x": want name=sum, max, min, sticky or newest`},
		"merge of ours":              {[]string{"--push-merge", "x=sum", "--push-merge", "go_goroutines=sum"}, "owned_by_service"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse(t, "", nil, tc.args...)
			require.ErrorContains(t, err, tc.want)
			require.NotContains(t, err.Error(), "hunter2")
		})
	}
}

func TestConfigPushMerge(t *testing.T) {
	want := []string{"a=sum", "b=max"}
	c, err := parse(t, "", nil, "--push-merge", "a=sum", "--push-merge", "b=max")
	require.NoError(t, err)
	require.Equal(t, want, c.pushMerge)
	c, err = parse(t, "", []serpent.EnvVar{{Name: "AGENTSTATSD_PUSH_MERGE", Value: "a=sum,b=max"}})
	require.NoError(t, err)
	require.Equal(t, want, c.pushMerge)
	c, err = parse(t, "pushes:\n  merge:\n    - a=sum\n    - b=max\n", nil)
	require.NoError(t, err)
	require.Equal(t, want, c.pushMerge)
	_, err = parse(t, "pushes:\n  merge:\n    - a=avg\n", nil)
	require.ErrorContains(t, err, `--push-merge: "a=avg"`)
}

// A wrong label is refused wherever it is given.
func TestConfigExtraLabels(t *testing.T) {
	c, err := parse(t, "", nil, "--prometheus-extra-labels", "template_version")
	require.NoError(t, err)
	require.Equal(t, []string{"template_version"}, c.extraLabels)
	for name, source := range map[string]struct {
		file string
		env  []serpent.EnvVar
		args []string
	}{
		"flag":        {args: []string{"--prometheus-extra-labels", "version"}},
		"environment": {env: []serpent.EnvVar{{Name: "AGENTSTATSD_PROMETHEUS_EXTRA_LABELS", Value: "version"}}},
		"file":        {file: "prometheus:\n  extra_labels:\n    - version\n"},
	} {
		_, err := parse(t, source.file, source.env, source.args...)
		require.ErrorContains(t, err, `--prometheus-extra-labels: "version" is none of template_version`, name)
	}
}

func TestConfigAllowsPlaintextBeyondLoopbackByOption(t *testing.T) {
	_, err := parse(t, "", nil, "--grpc-address", "0.0.0.0:2113", "--grpc-allow-plaintext")
	require.NoError(t, err)
}
