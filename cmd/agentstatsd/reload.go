package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/handshake"
	"github.com/coder/agentstatsd/internal/oneline"
	"github.com/coder/agentstatsd/internal/readiness"
	"github.com/coder/agentstatsd/internal/stages"
	"github.com/coder/agentstatsd/internal/systemd"
	"github.com/coder/agentstatsd/optiontable"
	"github.com/coder/agentstatsd/reload"
)

// reloading is what a reload changes of a process.
type reloading struct {
	reload.Parts[*candidate]
	// reloader is nil until buildReload.
	reloader *reload.Reloader
	signals  chan os.Signal // nil: SIGHUP ends the process
}

// addFiles has a reload read files, whose names do not change.
func (r *reloading) addFiles(name string, prepare func() (use func() (changed bool), err error)) {
	r.AddFiles(name, func(*candidate, *slog.Logger) (func() bool, error) { return prepare() })
}

// addGate has a reload reconfigure the limits of TLS handshakes.
func (r *reloading) addGate(name string, gate *handshake.Gate) {
	r.Add(name, func(n *candidate) error { return gate.Reconfigure(n.config.handshakes()) }, func() any { return gate.Options() })
}

// prepareReload reads the configuration and the files, and changes nothing.
func (r *reloading) prepareReload(log *slog.Logger) (*reload.Change, error) {
	next, err := r.InForce().config.sources.reread()
	if err != nil {
		return nil, err
	}
	return r.Prepare(next, log)
}

// oneLine returns an error's text without what is secret in it.
func oneLine(err error) string { return oneline.Text(userError(err)) }

// buildReload makes what reloads. From here on SIGHUP does not end the process, if its
// command reads its configuration again.
func (s *service) buildReload(reg prometheus.Registerer) error {
	if s.config.sources.candidate != nil {
		s.signals = make(chan os.Signal, 1)
		signal.Notify(s.signals, syscall.SIGHUP)
		s.cleanups = append(s.cleanups, func() { signal.Stop(s.signals) })
	}
	if log := logControlOf(s.log); log != nil {
		s.Add("log", log.reconfigure, log.options)
	}
	if s.tls != nil {
		s.addFiles("certificates of the gRPC listener", s.tls.Prepare)
	}
	if s.webConfig != nil {
		s.addFiles("web configuration", s.webConfig.Prepare)
	}
	var err error
	s.reloader, err = reload.New(s.prepareReload, optiontable.Hash(s.config.sources.options), oneLine, reg, s.log.With("component", "reload"))
	return err
}

// reloadTask returns the task that reloads on SIGHUP.
func (s *service) reloadTask() stages.Task {
	return stages.Task{Name: "reload", Run: func(ctx context.Context) error { return s.reloader.Run(ctx, s.signals) }}
}

// buildNotifier makes what tells the service manager how the process is.
func (s *service) buildNotifier(ready func() readiness.Answer) (err error) {
	var replica string
	if s.replicas != nil {
		replica = s.replicas.Self().String()
	}
	if s.manager, err = systemd.New(s.registry, ready, replica, s.log.With("component", "systemd")); err != nil {
		return err
	}
	s.reloader.Observe(s.manager)
	return nil
}

// reloadableByBridge are the flags of a bridge's own options that can change without a
// restart. TestReloadOfBridge shows that each really does.
var reloadableByBridge = []string{"coder-max-requests-per-second", "sync-interval", "max-agent-connections"}

// reloadable are the flags of options that can change without a restart. TestReload shows
// that each really does.
var reloadable = []string{
	// The endpoints of Prometheus.
	"max-concurrent-scrapes", "max-scrapes-per-second", "max-concurrent-pages", "max-pages-per-second", "max-http-connections", "max-http-connections-per-address",
	"tls-max-handshakes", "tls-max-handshakes-per-address", "tls-handshake-timeout",
	// The gRPC server.
	"grpc-message-timeout", "grpc-max-connections", "grpc-max-unauthenticated-connections", "grpc-max-unauthenticated-calls",
	"grpc-unauthenticated-rate", "grpc-unauthenticated-burst", "grpc-agent-call-rate", "grpc-max-open-calls",
	"grpc-authentication-timeout", "grpc-send-timeout", "max-message-bytes", "max-agent-message-bytes", "max-receiving-bytes", "max-streams-per-agent",
	"max-coderd-calls", "max-watches", "max-watch-bytes", "max-syncs", "max-coderd-instances", "max-relay-streams",
	// Agents.
	"report-interval", "adaptive-intervals", "target-cpu-percent", "target-pending-age", "target-flush-percent",
	"session-age", "agent-idle-timeout", "ack-delay", "agent-goodbye-timeout", "max-relayed-sessions",
	"max-agents", "max-registrations-bytes", "agent-message-rate", "agent-message-burst", "agent-byte-rate", "agent-byte-burst",
	"agent-refused-rate", "agent-refused-burst",
	"series-ttl", "max-series", "max-series-per-agent", "max-series-per-owner", "max-series-bytes", "max-series-bytes-per-agent",
	"max-series-bytes-per-owner", "max-families", "max-families-per-agent",
	// Coderd.
	"max-registration-bytes", "max-sync-bytes", "sync-timeout", "metadata-max-declared-keys", "metadata-reread-interval",
	"max-push-bytes", "max-pushes-bytes", "max-pushed-series", "max-pushed-series-total", "max-pushed-families", "max-push-row-bytes",
	"max-pushed-label-value-bytes", "max-pushed-labels-bytes",
	"stats-retention", "max-report-subscriptions", "max-report-sums", "max-report-sum-bytes", "reports-max-pending", "reports-max-pending-bytes",
	// Metadata.
	"metadata-flush-interval", "metadata-batch-size", "metadata-max-pending", "metadata-max-pending-per-agent",
	"metadata-max-pending-per-owner", "metadata-max-keys",
	"log-level", "log-max-per-minute",
}
