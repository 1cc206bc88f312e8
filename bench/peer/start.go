package peer

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/coder/agentstatsd/bench/load"
	"github.com/coder/agentstatsd/bench/process"
	"github.com/coder/agentstatsd/bench/stream"
)

// Subjects of the comparison.
const (
	Agentstatsd    = "agentstatsd"
	Pushgateway    = "Pushgateway"
	StatsdExporter = "statsd_exporter"
	Collector      = "OpenTelemetry Collector"
)

var starters = map[string]func(context.Context, Options) (*peer, error){
	Agentstatsd:    startAgentstatsd,
	Pushgateway:    startPushgateway,
	StatsdExporter: startStatsdExporter,
	Collector:      startCollector,
}

// startAgentstatsd starts the service. Its agents share one connection. Series are kept while the peers have their turns.
func startAgentstatsd(ctx context.Context, opts Options) (*peer, error) {
	service, err := stream.StartAgentstatsd(ctx, opts.Agentstatsd, opts.Temp, "--series-ttl=4h", "--grpc-agent-call-rate=100000")
	if err != nil {
		return nil, err
	}
	agents := load.Agents(opts.Series)
	if err := stream.Register(ctx, service.GRPC, service.Token, "", agents); err != nil {
		service.Stop()
		return nil, err
	}
	senders, err := process.StartSelf(ctx, "stream-senders", stream.SendersArgs{
		Target: service.GRPC, Count: agents, Samples: load.Forwarded, Acking: stream.Always, Shared: true,
	}, nil)
	if err != nil {
		service.Stop()
		return nil, err
	}
	return &peer{
		process: service.Process,
		http:    service.HTTP,
		acked:   true,
		send: func(context.Context, int) error {
			return senders.Call("busy", stream.BusyArgs{Reports: 1}, nil)
		},
		stop: func() {
			senders.Stop()
			service.Stop()
		},
	}, nil
}

// startPushgateway starts a Pushgateway without its consistency check, which
// looks through all it has at every push.
func startPushgateway(ctx context.Context, opts Options) (*peer, error) {
	addrs, err := stream.FreeAddresses(ctx, 1)
	if err != nil {
		return nil, err
	}
	p, err := start(ctx, opts, "pushgateway", addrs[0],
		"--web.listen-address="+addrs[0], "--push.disable-consistency-check", "--log.level=error")
	if err != nil {
		return nil, err
	}
	p.send = func(ctx context.Context, round int) error {
		return push(ctx, addrs[0], load.Agents(opts.Series), round)
	}
	return p, nil
}

// startStatsdExporter starts a statsd_exporter that listens on TCP, where
// nothing is lost.
func startStatsdExporter(ctx context.Context, opts Options) (*peer, error) {
	addrs, err := stream.FreeAddresses(ctx, 2)
	if err != nil {
		return nil, err
	}
	p, err := start(ctx, opts, "statsd_exporter", addrs[0],
		"--web.listen-address="+addrs[0], "--statsd.listen-tcp="+addrs[1], "--statsd.listen-udp=", "--log.level=error")
	if err != nil {
		return nil, err
	}
	p.send = func(ctx context.Context, round int) error {
		return sendStatsd(ctx, addrs[1], load.Agents(opts.Series), round)
	}
	return p, nil
}

// collectorConfig has what is received by OTLP served to Prometheus.
const collectorConfig = `receivers:
  otlp:
    protocols:
      grpc:
        endpoint: %s
exporters:
  prometheus:
    endpoint: %s
    metric_expiration: 4h
service:
  telemetry:
    logs:
      level: error
    metrics:
      level: none
  pipelines:
    metrics:
      receivers: [otlp]
      exporters: [prometheus]
`

func startCollector(ctx context.Context, opts Options) (*peer, error) {
	addrs, err := stream.FreeAddresses(ctx, 2)
	if err != nil {
		return nil, err
	}
	config := filepath.Join(opts.Temp, "otelcol.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, collectorConfig, addrs[1], addrs[0]), 0o600); err != nil {
		return nil, fmt.Errorf("write the collector's configuration: %w", err)
	}
	p, err := start(ctx, opts, "otelcol", addrs[0], "--config="+config)
	if err != nil {
		return nil, err
	}
	otlp, err := dialOTLP(addrs[1])
	if err != nil {
		p.stop()
		return nil, err
	}
	p.acked = true
	p.send = func(ctx context.Context, round int) error {
		return export(ctx, otlp, load.Agents(opts.Series), round)
	}
	p.stop = func() {
		_ = otlp.Close()
		p.process.Stop()
	}
	return p, nil
}

// start starts a binary and waits until it listens. The error is
// os.ErrNotExist if there is none.
func start(ctx context.Context, opts Options, name, http string, args ...string) (*peer, error) {
	binary := filepath.Join(opts.Dir, name)
	if _, err := os.Stat(binary); err != nil {
		return nil, err
	}
	started, err := process.Start(ctx, binary, args...)
	if err != nil {
		return nil, err
	}
	p := &peer{process: started, http: http, stop: started.Stop}
	if err := listening(ctx, started, http); err != nil {
		started.Stop()
		return nil, err
	}
	return p, nil
}

// listenTimeout bounds the wait for a peer that starts.
const listenTimeout = 30 * time.Second

func listening(ctx context.Context, p *process.Process, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, listenTimeout)
	defer cancel()
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "tcp", addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-p.Exited():
			return fmt.Errorf("it ended before it listened:\n%s", p.Log())
		case <-ctx.Done():
			return fmt.Errorf("wait for it to listen: %w\n%s", ctx.Err(), p.Log())
		}
	}
}
