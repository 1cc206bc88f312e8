package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/coder/serpent"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/admin"
	"github.com/coder/agentstatsd/internal/datadir"
	"github.com/coder/agentstatsd/internal/preflight"
	"github.com/coder/agentstatsd/optiontable"
	"github.com/coder/agentstatsd/reload"
	"github.com/coder/agentstatsd/store"
	"github.com/coder/agentstatsd/web"
)

func checkCommand() *serpent.Command {
	var c config
	var running admin.Client
	return &serpent.Command{
		Use:   "check",
		Short: "Look whether serve could start with these options, and change nothing.",
		Long: "It takes the options of serve, and looks at the configuration, the files, the database and the pubsub. Nothing is made, neither a file nor a table. " +
			"With --running it asks a service what a reload would change there.\n\n" +
			"  agentstatsd check --config /etc/agentstatsd/config.yaml --running http://127.0.0.1:2112",
		Options: append(c.options(), running.Options("",
			"The URL of a running service's HTTP listener: print what a reload would change there. It needs --web-enable-lifecycle.")...),
		Middleware: serpent.Chain(optiontable.NoArguments, configured(&c, c.validate, freshService)),
		Handler: func(inv *serpent.Invocation) error {
			return c.check(inv.Context(), inv.Stdout, &running)
		},
	}
}

// check writes what is found of all that a start needs.
func (c *config) check(ctx context.Context, w io.Writer, running *admin.Client) error {
	log := slog.New(slog.DiscardHandler)
	steps := []preflight.Step{
		{Name: "configuration", Run: func(context.Context) (string, error) { return c.summary(), nil }},
		{Name: "data directory", Run: func(context.Context) (string, error) { return preflight.Dir(c.dataDir, datadir.Files) }},
		{Name: "tokens", Run: func(context.Context) (string, error) { return c.checkTokens(log) }},
		{Name: "certificates", Run: func(context.Context) (string, error) { return c.checkCertificates(log) }},
		{Name: "database", Run: c.checkDatabase},
		{Name: "pubsub", Run: func(ctx context.Context) (string, error) {
			engine, err := (&service{config: c, log: log}).newEngine(prometheus.NewRegistry(), connectionName(hostname(), ""))
			if err != nil {
				return "", err
			}
			return strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%T", engine), "*pubsub."), "Engine") + " is reached", preflight.Connects(ctx, engine)
		}},
	}
	if running.URL != "" {
		steps = append(steps, preflight.Step{Name: "reload", Run: func(ctx context.Context) (string, error) { return dryRun(ctx, running) }})
	}
	return preflight.Run(ctx, w, oneLine, steps...)
}

// summary says how many options are set, and by what.
func (c *config) summary() string {
	set := 0
	for _, o := range c.sources.options {
		if o.ValueSource != serpent.ValueSourceDefault && o.ValueSource != serpent.ValueSourceNone {
			set++
		}
	}
	return fmt.Sprintf("%d options, %d of them set (serve --print-config shows them)", len(c.sources.options), set)
}

// checkTokens reads the files of tokens.
func (c *config) checkTokens(log *slog.Logger) (string, error) {
	tokens, err := c.readTokens(false, log)
	switch {
	case errors.Is(err, fs.ErrNotExist) && c.databaseURL == "":
		return "some are not there: they are made at the start", nil
	case err != nil:
		return "", err
	}
	return fmt.Sprintf("%d of coderd, %d to push, %d of operators", len(tokens.Coderd), len(tokens.Push), len(tokens.Operator)), nil
}

// checkCertificates reads the files of both listeners.
func (c *config) checkCertificates(log *slog.Logger) (string, error) {
	s := &service{config: c, log: log}
	var err error
	if s.tls, err = watchServerTLS(c, log); err != nil {
		return "", err
	}
	if err := c.loadWebConfig(s); err != nil {
		return "", err
	}
	if warnings := s.fileWarnings(); len(warnings) > 0 {
		return "", errors.New(strings.Join(warnings, "; "))
	}
	found := "none of gRPC"
	if s.tls != nil {
		found = "that of gRPC expires " + s.tls.Leaf().NotAfter.UTC().Format(time.RFC3339)
	}
	return found + ", " + webConfigText(s.webConfig), nil
}

func webConfigText(c *web.Config) string {
	if c == nil {
		return "no web configuration"
	}
	return "the web configuration can be used"
}

// checkDatabase reads the version of the schema.
func (c *config) checkDatabase(ctx context.Context) (string, error) {
	if _, err := os.Stat(c.databasePath()); c.databaseURL == "" && errors.Is(err, fs.ErrNotExist) {
		return "a SQLite file is made at the start", nil
	}
	current, newest, err := store.SchemaVersions(ctx, c.storeOptions())
	switch {
	case err != nil:
		return "", err
	case current > newest:
		return "", fmt.Errorf("the schema version %d is newer than %d, the newest that this program knows: the program that made it takes it back by migrate --to %d",
			current, newest, newest)
	case current < newest:
		return fmt.Sprintf("is reached, schema version %d: the start makes it %d", current, newest), nil
	}
	return fmt.Sprintf("is reached, schema version %d, the newest", current), nil
}

// dryRun returns what a reload of a running service would change.
func dryRun(ctx context.Context, running *admin.Client) (string, error) {
	var o reload.Outcome
	if err := running.Post(ctx, "/-/reload", url.Values{"dry_run": {"true"}}, &o); err != nil {
		return "", err
	}
	if o.Error != "" {
		return "", errors.New(o.Error)
	}
	return o.String(), nil
}

func logLevelCommand() *serpent.Command {
	var running admin.Client
	var within time.Duration
	return &serpent.Command{
		Use:   "log-level <level>",
		Short: "Change the least level that a running service logs, for a while.",
		Long: "The levels are debug, info, warn and error. After --for it is the configured one again. The service needs --web-enable-lifecycle.\n\n" +
			"  agentstatsd log-level debug --for 10m",
		Options: append(running.Options("http://127.0.0.1:2112", "The URL of the running service's HTTP listener."), serpent.Option{
			Flag: "for", Default: "10m", Description: "Time after which the level is the configured one again.",
			Value: durationWithin(&within, time.Second, reload.MaxLogLevelTime),
		}),
		Middleware: serpent.RequireNArgs(1),
		Handler: func(inv *serpent.Invocation) error {
			var change reload.LevelChange
			query := url.Values{"level": {inv.Args[0]}, "for": {within.String()}}
			if err := running.Post(inv.Context(), "/-/log-level", query, &change); err != nil {
				return err
			}
			_, err := fmt.Fprintf(inv.Stdout, "the level is %s until %s, then %s again\n", change.Level, change.Until.Format(time.RFC3339), change.Configured)
			return err
		},
	}
}
