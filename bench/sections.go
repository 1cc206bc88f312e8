package main

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"path/filepath"
	"time"

	"github.com/coder/agentstatsd/bench/bridged"
	"github.com/coder/agentstatsd/bench/database"
	"github.com/coder/agentstatsd/bench/figure"
	"github.com/coder/agentstatsd/bench/peer"
	"github.com/coder/agentstatsd/bench/render"
	"github.com/coder/agentstatsd/bench/scrape"
	"github.com/coder/agentstatsd/bench/stream"
	"github.com/coder/agentstatsd/bench/update"
)

// section is what can be measured by itself.
type section struct {
	name string
	// figures are the sections of figures that it makes.
	figures []string
	steps   []step
	// asked: it is measured only if -only names it.
	asked bool
}

type step struct {
	name    string
	measure func(ctx context.Context, o options, run *figure.Run, dir string) error
}

// idleStreams are as many as a server with 20,000 files has room for, with some
// for the rest.
const idleStreams = 10_000

// coderSamples is what a report of Coder's own agent has.
const coderSamples = 85

// benchSections take some 15 minutes on two cores. What is fast is measured more
// often.
func benchSections() []section {
	scrapes := section{name: "scrape", figures: []string{scrape.Section, scrape.MemorySection}}
	for _, size := range []scrape.Size{
		{Series: 10_000, Rounds: 15, SlowRounds: 7},
		{Series: 100_000, Rounds: 11, SlowRounds: 3},
		{Series: 1_000_000, Rounds: 7, SlowRounds: 1},
	} {
		scrapes.steps = append(scrapes.steps, step{
			fmt.Sprintf("scrapes of %d series", size.Series),
			func(ctx context.Context, _ options, run *figure.Run, dir string) error {
				return scrape.Compare(ctx, run, dir, size)
			},
		})
	}
	ingest := section{name: "ingest", figures: []string{stream.IngestSection}}
	for _, load := range []stream.Load{
		{Connections: 8, Rounds: 9, Milliseconds: 1500},
		// Each connection reports twice a second, which takes a third to a half
		// of a core.
		{Connections: 2000, Rounds: 5, Milliseconds: 5000, Rate: 4000},
	} {
		ingest.steps = append(ingest.steps, step{
			fmt.Sprintf("reports on %d connections", load.Connections),
			func(ctx context.Context, o options, run *figure.Run, dir string) error {
				return stream.Ingest(ctx, run, o.agentstatsd, dir, load)
			},
		})
	}
	idle := section{name: "idle", figures: []string{stream.IdleSection}}
	for _, tls := range []bool{false, true} {
		idle.steps = append(idle.steps, step{
			fmt.Sprintf("%d idle streams, %s", idleStreams, stream.IdleCase(tls)),
			func(ctx context.Context, _ options, run *figure.Run, dir string) error {
				return stream.Idle(ctx, run, dir, idleStreams, tls)
			},
		})
	}
	return []section{
		{name: "update", figures: []string{update.Section}, steps: []step{{
			"updates of samples",
			func(ctx context.Context, _ options, run *figure.Run, _ string) error {
				return update.Compare(ctx, run, 9)
			},
		}}},
		ingest,
		idle,
		{name: "acks", figures: []string{stream.AcksSection, stream.LocksSection}, steps: []step{{
			"acks while a million series are scraped",
			func(ctx context.Context, _ options, run *figure.Run, dir string) error {
				return stream.Acks(ctx, run, dir, 2, 30*time.Second)
			},
		}}},
		scrapes,
		growthSection(),
		fleetSection(),
		databaseSection(),
		bridgeSection(),
	}
}

// growthSection takes some 8 minutes and 8 GB, and is measured only if it is asked for.
func growthSection() section {
	s := section{name: "growth", figures: []string{stream.GrowthSection}, asked: true}
	for _, g := range []stream.Growth{
		{Series: 100_000, Rounds: 3, Window: 4 * time.Second},
		{Series: 1_000_000, Rounds: 3, Window: 6 * time.Second},
		{Series: 10_000_000, Rounds: 2, Window: 15 * time.Second},
	} {
		s.steps = append(s.steps, step{
			fmt.Sprintf("a service with %d series", g.Series),
			func(ctx context.Context, _ options, run *figure.Run, dir string) error {
				return stream.MeasureGrowth(ctx, run, dir, g)
			},
		})
	}
	return s
}

// fleetSection takes some 35 minutes, and is measured only if it is asked for.
func fleetSection() section {
	s := section{name: "fleet", figures: []string{stream.FleetSection}, asked: true}
	add := func(f stream.Fleet) {
		s.steps = append(s.steps, step{
			"a fleet of " + f.Case(),
			func(ctx context.Context, o options, run *figure.Run, dir string) error {
				return stream.MeasureFleet(ctx, run, o.agentstatsd, dir, f)
			},
		})
	}
	for _, samples := range []int{stream.Samples, coderSamples} {
		for _, agents := range []int{1000, 4000, 9000} {
			add(stream.Fleet{Agents: agents, Samples: samples, Settle: 45 * time.Second, Window: time.Minute})
		}
	}
	add(stream.Fleet{Agents: 9000, Samples: stream.Samples, Settle: 45 * time.Second, Window: time.Minute, Relayed: true})
	add(stream.Fleet{Agents: 50_000, Samples: stream.Samples, Settle: time.Minute, Window: 5 * time.Minute, Relayed: true})
	return s
}

// databaseSection takes some 35 minutes, and is measured only if it is asked for.
func databaseSection() section {
	l := database.Load{Agents: 10_000, For: 30 * time.Minute, Every: time.Minute}
	return section{name: "database", figures: []string{database.Section}, asked: true, steps: []step{{
		"a PostgreSQL under " + l.Case(),
		func(ctx context.Context, o options, run *figure.Run, dir string) error {
			return database.Measure(ctx, run, o.agentstatsd, dir, o.out, l)
		},
	}}}
}

// bridgeSection takes some ten minutes, and is measured only if it is asked for.
func bridgeSection() section {
	const connections = 2000
	return section{name: "bridge", figures: []string{bridged.Section}, asked: true, steps: []step{{
		fmt.Sprintf("%d agents through bridges", connections),
		func(ctx context.Context, o options, run *figure.Run, dir string) error {
			return bridged.Measure(ctx, run, o.agentstatsd, dir, bridged.Load{
				Connections: connections, Rounds: 3, Settle: 10 * time.Second, Window: 20 * time.Second, Quiet: 2 * time.Second,
			})
		},
	}}}
}

// peerPatience is how long a peer may take for one step. A scrape that takes a
// minute fails in a Prometheus that scrapes each minute.
const peerPatience = 90 * time.Second

func peerSections() []section {
	peers := section{name: "peers", figures: []string{peer.Section}}
	for _, size := range []struct{ series, rounds int }{{10_000, 5}, {100_000, 3}, {1_000_000, 1}} {
		peers.steps = append(peers.steps, step{
			fmt.Sprintf("peers with %d series", size.series),
			func(ctx context.Context, o options, run *figure.Run, dir string) error {
				return peer.Compare(ctx, run, peer.Options{
					Agentstatsd: o.agentstatsd, Dir: o.peers, Temp: dir,
					Series: size.series, Rounds: size.rounds, Patience: peerPatience,
				})
			},
		})
	}
	return []section{peers}
}

// compared modules of this program.
var compared = []string{
	"github.com/prometheus/client_golang",
	"github.com/VictoriaMetrics/metrics",
	"google.golang.org/grpc",
	"google.golang.org/protobuf",
	"github.com/klauspost/compress",
}

// ofPeers are the modules by the binaries that are made of them.
var ofPeers = []struct{ binary, module string }{
	{"pushgateway", "github.com/prometheus/pushgateway"},
	{"statsd_exporter", "github.com/prometheus/statsd_exporter"},
	{"otelcol", "github.com/open-telemetry/opentelemetry-collector-contrib/exporter/prometheusexporter"},
	{"otelcol", "go.opentelemetry.io/collector/receiver/otlpreceiver"},
}

// modules that a part compares, in their versions.
func (o options) modules(part string) []figure.Module {
	if part == render.Bench {
		return figure.Modules(compared...)
	}
	var modules []figure.Module
	for _, p := range ofPeers {
		info, err := buildinfo.ReadFile(filepath.Join(o.peers, p.binary))
		if err != nil {
			continue // not built: the comparison says so
		}
		modules = append(modules, figure.ModulesOf(info, []string{p.module})...)
	}
	return modules
}
