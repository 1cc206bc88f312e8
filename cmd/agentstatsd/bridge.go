package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"time"

	"github.com/coder/serpent"

	"github.com/coder/agentstatsd/bridge"
	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/addresses"
	"github.com/coder/agentstatsd/internal/handshake"
	"github.com/coder/agentstatsd/internal/librarylog"
	"github.com/coder/agentstatsd/internal/memorylimit"
	"github.com/coder/agentstatsd/internal/readiness"
	"github.com/coder/agentstatsd/internal/stages"
	"github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/optiontable"
	"github.com/coder/agentstatsd/scrape"
	"github.com/coder/agentstatsd/secrets"
	"github.com/coder/agentstatsd/web"
)

func bridgeCommand() *serpent.Command {
	var c bridgeConfig
	return &serpent.Command{
		Use:   "bridge",
		Short: "Register a stock coderd's agents, pass them on to it, relay what they say to the service, and scrape coderd.",
		Long: "Agents and workspaces are read at --coder-url, and registered with the service. Agents' connections come to --listen, as the ingress sends the path /api/v2/workspaceagents/me/rpc there, and go on to " +
			"--upstream, byte by byte. What a copy of them says is relayed to the service. Whatever goes wrong there, the connections go on. Coderds' own metrics are scraped at --coderd-metrics-url, and pushed to the service. Each of the three can be left out.\n\n" +
			"  agentstatsd bridge --upstream http://coder:7080 --service-url 'agentstatsd://stats:2113?token_file=/etc/agentstatsd/token'",
		Options:    c.withPrint(c.options()),
		Middleware: serpent.Chain(optiontable.NoArguments, configured(&c.config, c.validate, freshBridge)),
		Handler: func(inv *serpent.Invocation) error {
			log, err := newLogger(inv.Stderr, &c.config)
			if err != nil {
				return err
			}
			librarylog.GRPC(log)
			return runBridge(inv.Context(), &c, log)
		},
	}
}

// freshBridge returns the configuration of a bridge, not read yet.
func freshBridge() *candidate {
	b := new(bridgeConfig)
	return &candidate{config: &b.config, bridge: b, options: b.options(), validate: b.validate}
}

// validate checks the options of a bridge. Its errors name the flags.
func (b *bridgeConfig) validate() error {
	errs := []error{b.validateOwn()}
	if b.serviceURL == "" {
		errs = append(errs, errors.New("--service-url: want agentstatsd://host:port, got none"))
	}
	if (b.tlsCertFile == "") != (b.tlsKeyFile == "") {
		errs = append(errs, errors.New("--tls-cert-file and --tls-key-file need each other"))
	}
	for _, l := range []struct{ flag, address string }{{"prometheus-address", b.prometheusAddress}, {"pprof-address", b.pprofAddress}, {"probe-address", b.probeAddress}} {
		if err := addresses.Check(l.address); err != nil && (l.address != "" || l.flag == "prometheus-address") {
			errs = append(errs, fmt.Errorf("--%s %q: want host:port, such as 127.0.0.1:2115: %w", l.flag, l.address, err))
		}
	}
	return errors.Join(append(errs, b.validatePprof())...)
}

// validateOwn checks those that only a bridge has.
func (b *bridgeConfig) validateOwn() error {
	var errs []error
	if b.upstream == "" && b.coderURL == "" && len(b.coderdMetricsURLs) == 0 {
		errs = append(errs, errors.New("--upstream: want the URL of coderd, such as http://coder:7080, or --coder-url to register its agents only, or --coderd-metrics-url to scrape it only; got none"))
	}
	if _, err := b.upstreamURL(); err != nil && b.upstream != "" {
		errs = append(errs, err)
	}
	errs = append(errs, b.validateCoder(), b.validateTargets())
	if most := maxAgentConnections(); b.maxAgentConns > most {
		errs = append(errs, fmt.Errorf("--max-agent-connections: want at most %d, nine twentieths of the files that the process may open, got %d", most, b.maxAgentConns))
	}
	if err := addresses.Check(b.listen); err != nil {
		errs = append(errs, fmt.Errorf("--listen %q: want host:port, such as 127.0.0.1:2114: %w", b.listen, err))
	} else if b.tlsCertFile == "" && !b.allowPlaintext {
		if loopback, err := addresses.IsLoopback(b.listen); err != nil {
			errs = append(errs, fmt.Errorf("--listen %s: %w", b.listen, err))
		} else if !loopback {
			errs = append(errs, fmt.Errorf("--listen %s is beyond loopback: give --tls-cert-file and --tls-key-file, or --allow-plaintext", b.listen))
		}
	}
	return errors.Join(errs...)
}

// upstreamURL returns the URL of coderd. Its errors do not show it, as it may hold a
// password.
func (b *bridgeConfig) upstreamURL() (*url.URL, error) {
	u, err := url.Parse(b.upstream)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("--upstream: want the URL of coderd, such as http://coder:7080")
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("--upstream: want no user, no query and no fragment")
	}
	return u, nil
}

// mostAgentConnections is the most by default: about as many can be from one machine to one
// port of coderd.
const mostAgentConnections = 28_000

func (b *bridgeConfig) bridgeOptions() bridge.Options {
	u, _ := b.upstreamURL() // validate has checked it
	return bridge.Options{
		Upstream: u, DrainDelay: optiontable.OrNone(b.drainDelay), DrainTimeout: b.drainTimeout, CloseTimeout: b.closeTimeout,
		MaxConnections:  int(cmp.Or(b.maxAgentConns, min(openFiles()*3/8, mostAgentConnections))),
		MaxDecoderBytes: b.maxDecoderBytes, MaxAgents: int(b.maxRelayedAgents), DropForwarded: !b.trustForwarded,
	}
}

// stopTimeout bounds the time from the signal to the end.
func (b *bridgeConfig) stopTimeout() time.Duration {
	return b.drainDelay + b.drainTimeout + b.closeTimeout + serverStop
}

// watchTLS returns the TLS configuration of the listener for agents; nil: plaintext.
func (b *bridgeConfig) watchTLS(log *slog.Logger) (*serverTLS, error) {
	if b.tlsCertFile == "" {
		return nil, nil
	}
	watched, err := secrets.Watch(secrets.Source[*tls.Config]{
		Name: "TLS of the listener for agents",
		Read: func() (secrets.Files, error) { return secrets.ReadFiles(b.tlsCertFile, b.tlsKeyFile) },
		Parse: func(files secrets.Files) (*tls.Config, secrets.Certificates, error) {
			conf, certs, err := b.parseServerTLS(files)
			if err == nil {
				conf.NextProtos = []string{"http/1.1"} // in which alone a connection can be upgraded
			}
			return conf, certs, err
		},
	}, log)
	if err != nil {
		return nil, fmt.Errorf("--tls-cert-file, --tls-key-file: %w", err)
	}
	return watched, nil
}

// runBridge runs a bridge until ctx ends, and its endpoint for Prometheus until after it.
func runBridge(ctx context.Context, c *bridgeConfig, log *slog.Logger) error {
	s, p, err := newBridge(c, log)
	if err != nil {
		return err
	}
	defer s.close()
	agents, err := c.listenForAgents(ctx, s, s.tls)
	if err != nil {
		return unlessStopped(ctx, err)
	}
	if err := s.listenForScrapers(ctx); err != nil {
		return unlessStopped(ctx, err)
	}
	log.Info("agentstatsd bridge starts", append(append([]any{"version", version()}, c.places(agents)...), s.endpointPlaces()...)...)
	defer context.AfterFunc(ctx, s.manager.Stopping)()
	err = stages.Run(ctx, log,
		stages.Stage{Name: "bridge", Tasks: p.tasks(agents), Timeout: c.stopTimeout()},
		stages.Stage{Name: "endpoints", Tasks: s.endpoints(), Timeout: endpointStop})
	log.Info("agentstatsd bridge stopped")
	return err
}

// newBridge makes a bridge, and its endpoints, which are those of a service.
func newBridge(c *bridgeConfig, log *slog.Logger) (_ *service, p *bridgeParts, err error) {
	c.prometheusEnable = true // readiness is there
	s := &service{config: &c.config, log: log, registry: metrics.NewRegistry()}
	s.Start(&candidate{config: &c.config, bridge: c})
	if s.tls, err = c.watchTLS(log); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	conn, err := client.DialURL(c.serviceURL)
	if err != nil {
		return nil, nil, fmt.Errorf("--service-url: %w", err)
	}
	s.cleanups = append(s.cleanups, func() { _ = conn.Close() })
	if err := s.observeBridge(); err != nil {
		return nil, nil, err
	}
	if p, err = c.buildParts(conn, s); err != nil {
		return nil, nil, err
	}
	if err := c.buildEndpoints(s, p); err != nil {
		return nil, nil, err
	}
	return s, p, nil
}

// observeBridge makes what a bridge says of itself, and what reloads it.
func (s *service) observeBridge() error {
	memorylimit.Set(s.log)
	if err := registerBuildInfo(s.registry); err != nil {
		return err
	}
	if err := s.registerLogAndTLS(s.registry, "agents"); err != nil {
		return err
	}
	if err := s.config.loadWebConfig(s); err != nil {
		return err
	}
	return s.buildReload(s.registry)
}

func (c *config) loadWebConfig(s *service) (err error) {
	if c.webConfigFile == "" {
		return nil
	}
	if s.webConfig, err = web.LoadConfig(c.webConfigFile, s.log.With("listener", "prometheus")); err != nil {
		return fmt.Errorf("--web-config-file: %w", err)
	}
	return nil
}

// buildEndpoints makes what Prometheus scrapes, and the profiles.
func (b *bridgeConfig) buildEndpoints(s *service, p *bridgeParts) error {
	opts := b.scrapeOptions()
	opts.Log, opts.Headers = s.log.With("component", "metrics"), s.registry.Headers
	handler, err := scrape.NewHandler(s.registry, opts)
	if err != nil {
		return err
	}
	return s.buildHTTP(s.registry, handler, func() readiness.Answer {
		r := p.ready()
		r.Warnings = append(r.Warnings, s.fileWarnings()...)
		return r
	})
}

// listenForAgents opens the listener for agents, with TLS unless conf is nil. nil: none
// come here.
func (b *bridgeConfig) listenForAgents(ctx context.Context, s *service, conf *serverTLS) (net.Listener, error) {
	if b.upstream == "" {
		return nil, nil
	}
	agents, err := s.open(ctx, "agents", "listen", b.listen)
	if err != nil || conf == nil {
		return agents, err
	}
	if s.agentsGate, err = handshake.New(b.handshakes(), "agents", s.registry, s.log.With("component", "bridge")); err != nil {
		return nil, err
	}
	s.addGate("agents handshakes", s.agentsGate)
	if conf != s.tls { // beside a service
		s.addFiles("certificates of the listener for agents", conf.Prepare)
	}
	return tls.NewListener(agents, &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: s.agentsGate.Config(conf.Get)}), nil
}
