package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/coder/serpent"

	"github.com/coder/agentstatsd/cmd/agentstatsd/internal/simulation"
	"github.com/coder/agentstatsd/internal/stages"
	"github.com/coder/agentstatsd/optiontable"
	"github.com/coder/agentstatsd/simulate"
)

// demoAckDeadline bounds how long a demo that stops waits for acks. What it simulates
// is worth no wait, and the service flushes it anyway.
const demoAckDeadline = time.Second

// demoStop bounds the stop of the simulation, which waits demoAckDeadline for
// acks and ends its streams.
const demoStop = 10 * time.Second

// A demo shows agents that never connect, and that instances of coderd add up.
const (
	demoUnreachable = 2
	demoCoderds     = 2
)

func demoCommand() *serpent.Command {
	var c config
	var agents int64
	options := c.options()
	// A demo leaves nothing behind, and moves fast enough to watch.
	dataDir := options.ByFlag("data-dir")
	dataDir.Default = ""
	dataDir.Description = "Directory of the SQLite database and of generated secrets. Empty: a temporary one, removed at the end."
	options.ByFlag("report-interval").Default = "5s"
	options.ByFlag("metadata-flush-interval").Default = "2s"
	options.ByFlag("log-level").Default = "warn"
	options = append(serpent.OptionSet{{
		Name: "Agents", Flag: "agents", Default: "25",
		Description: "Number of simulated agents.", Value: atLeast(&agents, 1),
	}}, options...)
	return &serpent.Command{
		Use:        "demo",
		Short:      "Run the service and simulated agents, in one process.",
		Options:    options,
		Middleware: serpent.Chain(optiontable.NoArguments, configured(&c, c.validate, nil)),
		Handler: func(inv *serpent.Invocation) (err error) {
			if c.dataDir == "" {
				if c.dataDir, err = os.MkdirTemp("", "agentstatsd-demo-"); err != nil {
					return fmt.Errorf("make data directory: %w", err)
				}
				defer func() { err = errors.Join(err, os.RemoveAll(c.dataDir)) }()
			}
			return runDemo(inv.Context(), &c, int(agents), inv.Stdout, inv.Stderr)
		},
	}
}

// runDemo runs the service and its agents until ctx ends: first the agents stop,
// then the service.
func runDemo(ctx context.Context, c *config, agents int, stdout, stderr io.Writer) error {
	log, err := newLogger(stderr, c)
	if err != nil {
		return err
	}
	s, err := newService(ctx, c, log)
	if err != nil {
		return unlessStopped(ctx, err)
	}
	serverName, err := certificateName(c.tlsCertFile)
	if err != nil {
		s.close()
		return err
	}
	// The certificate is trusted as it stands: its file is the service's own.
	dial, err := simulation.DialOptions(c.tokenFile(), c.tlsCertFile, serverName, false, log)
	if err != nil {
		s.close()
		return err
	}
	if err := s.describe(stdout, agents); err != nil {
		s.close()
		return err
	}
	simulation := func(ctx context.Context) error {
		_, err := simulate.Run(ctx, simulate.Options{
			Targets: []string{s.grpcListener.Addr().String()}, Dial: dial, Fleet: "demo", Agents: agents,
			Unreachable: demoUnreachable, Coderds: demoCoderds, PushInterval: c.reportInterval,
			MetadataInterval: c.reportInterval, DrainTimeout: demoAckDeadline, Keep: true, Watch: true,
		}, log.With("component", "simulate"))
		return err
	}
	return stages.Run(ctx, log,
		stages.Stage{Name: "simulation", Tasks: []stages.Task{{Name: "agents", Run: simulation}}, Timeout: demoStop},
		stages.Stage{Name: "service", Tasks: []stages.Task{{Name: "service", Run: func(ctx context.Context) error { return s.run(ctx) }}}, Timeout: c.stopTimeout()},
	)
}

// describe prints where to look.
func (s *service) describe(w io.Writer, agents int) error {
	var registry string
	if s.httpListener != nil {
		scheme := "http"
		if s.webConfig.TLS() {
			scheme = "https"
		}
		url := fmt.Sprintf("%s://%s/", scheme, s.httpListener.Addr())
		registry = fmt.Sprintf(`
  what Prometheus sees   curl -s %[1]s
  the status page        %[1]sstatus
  readiness              curl -s %[1]s-/ready`, url)
	}
	_, err := fmt.Fprintf(w, `agentstatsd demo: the service, and %d simulated agents that report every %s
%s
  what operators ask     agentstatsd status --address %[4]s --token-file %[5]s
  gRPC                   %[4]s
  coderd's token         %[5]s

Ctrl-C ends it.
`, agents, s.config.reportInterval, registry, s.grpcListener.Addr(), s.config.tokenFile())
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}
