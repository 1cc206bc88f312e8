package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"

	"google.golang.org/grpc"

	"github.com/coder/agentstatsd/bridge"
	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/addresses"
	"github.com/coder/agentstatsd/internal/readiness"
	"github.com/coder/agentstatsd/internal/stages"
)

// bridgeParts are what a bridge does; nil: it does not.
type bridgeParts struct {
	agents        *bridge.Bridge
	registrations *bridge.Registrations
	targets       *bridge.Targets
}

// validateCoder checks the options of registrations. Its errors do not show the URL, as it
// may hold a password.
func (b *bridgeConfig) validateCoder() error {
	if (b.coderURL == "") != (b.coderTokenFile == "") {
		return errors.New("--coder-url and --coder-api-token-file need each other")
	}
	if b.coderURL == "" {
		return nil
	}
	if !addresses.IsPlainURL(b.coderURL) {
		return errors.New("--coder-url: want the access URL of Coder, such as https://coder.example.com, without user, query and fragment")
	}
	return nil
}

func (b *bridgeConfig) registrationsOptions() bridge.RegistrationsOptions {
	return bridge.RegistrationsOptions{
		CoderURL: b.coderURL, TokenFile: b.coderTokenFile, MaxRequestsPerSecond: int(b.coderMaxRequests), SyncInterval: b.coderSyncInterval,
	}
}

// validateTargets checks the URLs of coderds' metrics. Its errors do not show them.
func (b *bridgeConfig) validateTargets() error {
	for _, u := range b.coderdMetricsURLs {
		if err := bridge.CheckTarget(u); err != nil {
			return fmt.Errorf("--coderd-metrics-url: %w", err)
		}
	}
	return nil
}

func (b *bridgeConfig) targetsOptions() bridge.TargetsOptions {
	return bridge.TargetsOptions{
		URLs: b.coderdMetricsURLs, Interval: b.scrapeInterval, MaxBodyBytes: b.maxScrapeBytes, MaxTargets: int(b.maxTargets),
		HTTPConfigFile: b.coderdMetricsHTTPFile,
		PassThrough:    b.upstream == "" && !b.leaveOutAgents, // no agent is relayed
	}
}

// buildParts makes the parts that are configured.
func (b *bridgeConfig) buildParts(conn *grpc.ClientConn, s *service) (p *bridgeParts, err error) {
	p = new(bridgeParts)
	opts := b.bridgeOptions()
	if b.coderURL != "" {
		of := b.registrationsOptions()
		if b.coderCAFile != "" {
			if of.TLS, err = (client.TLSFiles{CA: b.coderCAFile}).Config(); err != nil {
				return nil, fmt.Errorf("--coder-ca-file: %w", err)
			}
		}
		if p.registrations, err = bridge.NewRegistrations(conn, of, s.registry, s.log.With("component", "registrations")); err != nil {
			return nil, err
		}
		s.Add("registrations", func(n *candidate) error { return p.registrations.Reconfigure(n.bridge.registrationsOptions()) },
			func() any { return p.registrations.Options() })
		opts.Connected, opts.Unknown = p.registrations.Connected, p.registrations.Unknown
	}
	if len(b.coderdMetricsURLs) > 0 {
		if p.targets, err = bridge.NewTargets(conn, b.targetsOptions(), s.registry, s.log.With("component", "targets")); err != nil {
			return nil, err
		}
	}
	if b.upstreamCAFile != "" {
		if opts.UpstreamTLS, err = (client.TLSFiles{CA: b.upstreamCAFile}).Config(); err != nil {
			return nil, fmt.Errorf("--upstream-ca-file: %w", err)
		}
	}
	if b.upstream != "" {
		opts.HTTPError = func(line string) { s.agentsGate.FailedHTTP(line) }
		if p.agents, err = bridge.New(conn, opts, s.registry, s.log.With("component", "bridge")); err != nil {
			return nil, err
		}
		s.Add("bridge", func(n *candidate) error { return p.agents.Reconfigure(n.bridge.bridgeOptions()) }, func() any { return p.agents.Options() })
	}
	return p, readiness.Register(s.registry, p.checks())
}

// tasks returns what runs until the signal. Agents come to the listener.
func (p *bridgeParts) tasks(agents net.Listener) (tasks []stages.Task) {
	if p.agents != nil {
		tasks = append(tasks, stages.Task{Name: "agents", Run: func(ctx context.Context) error { return p.agents.Serve(ctx, agents) }})
	}
	if p.registrations != nil {
		tasks = append(tasks, stages.Task{Name: "registrations", Run: p.registrations.Run})
	}
	if p.targets != nil {
		tasks = append(tasks, stages.Task{Name: "targets", Run: p.targets.Run})
	}
	return tasks
}

// checks are what readiness depends on.
func (p *bridgeParts) checks() []readiness.Check {
	if p.agents == nil {
		return nil
	}
	return []readiness.Check{{Name: "bridge", Err: p.agents.Ready}}
}

// ready returns the answer of /-/ready. It depends on what takes agents' connections
// alone: they must not be taken from coderd.
func (p *bridgeParts) ready() readiness.Answer {
	r := readiness.Of(p.checks())
	if p.agents != nil {
		r.Warnings = append(r.Warnings, p.agents.Warnings()...)
	}
	if p.registrations != nil {
		r.Warnings = append(r.Warnings, p.registrations.Warnings()...)
	}
	if p.targets != nil {
		r.Warnings = append(r.Warnings, p.targets.Warnings()...)
	}
	return r
}

// beside returns the answer of a process that is a service, too. Where agents' connections
// come to it, the reasons of the service are warnings only.
func (p *bridgeParts) beside(service readiness.Answer) readiness.Answer {
	r := p.ready()
	if p.agents == nil {
		service.Warnings = append(service.Warnings, r.Warnings...)
		return service
	}
	for _, part := range slices.Sorted(maps.Keys(service.Reasons)) {
		r.Warnings = append(r.Warnings, part+": "+service.Reasons[part])
	}
	r.Warnings = append(r.Warnings, service.Warnings...)
	return r
}

// places returns where the bridge listens and what it reads, for the log.
func (b *bridgeConfig) places(agents net.Listener) (places []any) {
	if agents != nil {
		places = append(places, "address", agents.Addr().String(), "tls", tlsPlace(b.tlsCertFile, b.tlsKeyFile), "upstream", b.bridgeOptions().Upstream.Host)
	}
	if u, err := url.Parse(b.coderURL); err == nil && b.coderURL != "" {
		places = append(places, "coder", u.Host)
	}
	if n := len(b.coderdMetricsURLs); n > 0 {
		places = append(places, "metrics_urls", n)
	}
	return places
}
