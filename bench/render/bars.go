// Package render makes a page and a picture of results.
package render

import (
	"fmt"
	"math"
	"slices"

	"github.com/coder/agentstatsd/bench/bridged"
	"github.com/coder/agentstatsd/bench/figure"
	"github.com/coder/agentstatsd/bench/scrape"
	"github.com/coder/agentstatsd/bench/stream"
	"github.com/coder/agentstatsd/bench/update"
)

// bar is what a figure is to be at least or at most.
type bar struct {
	name string
	// text of the bar, and of what was seen.
	text string
	unit func(v float64) string
	// values that were seen; none: it was not measured.
	values func(figure.Results) []float64
	limit  float64
	// atLeast the limit; else at most.
	atLeast bool
	// always: all values are judged, not their median.
	always bool
}

// seen is what there is to say of a bar.
type seen struct {
	text     string
	measured bool
	met      bool
}

func (b bar) see(r figure.Results) seen {
	values := b.values(r)
	if len(values) == 0 {
		return seen{text: "not measured"}
	}
	s := figure.Summarize(values)
	judged := s.Median
	switch {
	case b.always && b.atLeast:
		judged = s.Min
	case b.always:
		judged = s.Max
	}
	met := judged <= b.limit
	if b.atLeast {
		met = judged >= b.limit
	}
	text := b.unit(s.Median)
	if s.N > 1 {
		text += fmt.Sprintf(" (%s to %s)", b.unit(s.Min), b.unit(s.Max))
	}
	return seen{text: text, measured: true, met: met}
}

func times(v float64) string { return number(v) + "×" }

func unit(name string) func(float64) string {
	return func(v float64) string { return number(v) + " " + name }
}

func kibibytes(v float64) string { return number(v/1024) + " KiB" }

func gigabytes(v float64) string { return number(v/1e9) + " GB" }

// number renders three digits that count.
func number(v float64) string {
	switch size := math.Abs(v); {
	case math.IsNaN(v):
		return "?"
	case size >= 99.95:
		return grouped(int64(math.Round(v)))
	case size >= 9.995:
		return fmt.Sprintf("%.1f", v)
	case size < 0.005:
		return "0"
	}
	return fmt.Sprintf("%.2f", v)
}

// grouped renders an integer with a comma at each thousand.
func grouped(n int64) string {
	if n < 0 {
		return "-" + grouped(-n)
	}
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return grouped(n/1000) + fmt.Sprintf(",%03d", n%1000)
}

// ratio of two figures.
func ratio(a, b figure.Key) func(figure.Results) []float64 {
	return func(r figure.Results) []float64 { return figure.Ratios(r.Values(a), r.Values(b)) }
}

func scraped(series int, format string, gzip bool, subject string) figure.Key {
	return figure.Key{
		Section: scrape.Section, Case: scrape.Case(series, scrape.Ask{Format: format, Gzip: gzip}), Subject: subject, Metric: scrape.Total,
	}
}

func ingested(connections int, subject string) figure.Key {
	return figure.Key{Section: stream.IngestSection, Case: stream.Case(connections), Subject: subject, Metric: stream.CPUPerReport}
}

func updated(subject, metric string) figure.Key {
	return figure.Key{Section: update.Section, Case: update.Case, Subject: subject, Metric: metric}
}

func idle(tls bool, subject, metric string) figure.Key {
	return figure.Key{Section: stream.IdleSection, Case: stream.IdleCase(tls), Subject: subject, Metric: metric}
}

// Numbers of series and of connections that are compared.
const (
	small, middle, large, huge = 10_000, 100_000, 1_000_000, 10_000_000
	few, many                  = 8, 2000
)

// bars in the order in which they are shown.
var bars = []bar{
	{
		name: "scrape of 1M series, plain text, all new: against a Collector of const metrics",
		text: "at least 100 times faster", unit: times, limit: 100, atLeast: true,
		values: ratio(scraped(large, scrape.Text, false, scrape.Collector), scraped(large, scrape.Text, false, scrape.Agentstatsd)),
	},
	{
		name: "the same, nothing new",
		text: "at least 100 times faster", unit: times, limit: 100, atLeast: true,
		values: ratio(scraped(large, scrape.Text, false, scrape.Collector), scraped(large, scrape.Text, false, scrape.Unchanged)),
	},
	{
		name: "the same, all new: against a Collector like coderd's, which makes descriptors anew too",
		text: "at least 100 times faster", unit: times, limit: 100, atLeast: true,
		values: ratio(scraped(large, scrape.Text, false, scrape.CoderdWay), scraped(large, scrape.Text, false, scrape.Agentstatsd)),
	},
	{
		name: "scrape of 1M series, plain text: against the copy limit",
		text: "at most 3 times", unit: times, limit: 3,
		values: ratio(scraped(large, scrape.Text, false, scrape.Agentstatsd), scraped(large, scrape.Text, false, scrape.Copy)),
	},
	{
		name: "scrape of 100k series, gzip: against GaugeVec with promhttp",
		text: "at least 12 times faster", unit: times, limit: 12, atLeast: true,
		values: ratio(scraped(middle, scrape.Text, true, scrape.GaugeVec), scraped(middle, scrape.Text, true, scrape.Agentstatsd)),
	},
	{
		name: "scrape of 1M series, plain: protobuf against text",
		text: "at most 1.5 times", unit: times, limit: 1.5,
		values: ratio(scraped(large, scrape.Protobuf, false, scrape.Agentstatsd), scraped(large, scrape.Text, false, scrape.Agentstatsd)),
	},
	{
		name: "report of 30 samples, 8 busy streams, CPU: against receive and discard",
		text: "at most 2 times", unit: times, limit: 2,
		values: ratio(ingested(few, stream.Fast), ingested(few, stream.Discard)),
	},
	{
		name: "report of 30 samples, 2,000 connections, CPU: against receive and discard",
		text: "at most 1.25 times", unit: times, limit: 1.25,
		values: ratio(ingested(many, stream.Fast), ingested(many, stream.Discard)),
	},
	{
		name: "the same: against receive, discard and ack",
		text: "at most 1.25 times", unit: times, limit: 1.25,
		values: ratio(ingested(many, stream.Fast), ingested(many, stream.Answering)),
	},
	{
		name: "report of 30 samples, 2,000 connections, CPU: against generated decoding",
		text: "at most half", unit: times, limit: 0.5,
		values: ratio(ingested(many, stream.Fast), ingested(many, stream.Generated)),
	},
	{
		name: "update of a sample: against the map keyed by a built string",
		text: "at least 15 times faster", unit: times, limit: 15, atLeast: true,
		values: ratio(updated(update.StringMap, update.Nanoseconds), updated(update.Agentstatsd, update.Nanoseconds)),
	},
	{
		// Below a thousandth are those of the runtime itself.
		name: "update of a sample: allocations",
		text: "0", unit: number, limit: 0.001,
		values: func(r figure.Results) []float64 { return r.Values(updated(update.Agentstatsd, update.Allocations)) },
	},
	{
		name: "memory of a series at 1M, heap after collection, all included",
		text: "at most 350 bytes", unit: unit("bytes"), limit: 350,
		values: func(r figure.Results) []float64 {
			return r.Values(figure.Key{Section: scrape.MemorySection, Case: fmt.Sprint(large), Subject: scrape.Agentstatsd, Metric: scrape.HeapPerSeries})
		},
	},
	{
		name: "idle stream on its own connection, resident: plaintext",
		text: "at most 36 KiB", unit: kibibytes, limit: 36 << 10,
		values: func(r figure.Results) []float64 { return r.Values(idle(false, stream.Fast, stream.HeldPerStream)) },
	},
	{
		name: "idle stream on its own connection, resident: TLS",
		text: "at most 58 KiB", unit: kibibytes, limit: 58 << 10,
		values: func(r figure.Results) []float64 { return r.Values(idle(true, stream.Fast, stream.HeldPerStream)) },
	},
	{
		name: "longest ack at a third of a core, 1M series scraped every 5 s",
		text: "at most 50 ms", unit: unit("ms"), limit: 50, always: true,
		values: func(r figure.Results) []float64 {
			return r.Values(figure.Key{Section: stream.AcksSection, Case: stream.AcksCase, Subject: stream.Scraped, Metric: stream.AckMax})
		},
	},
	{
		name: "longest wait for a lock of the service meanwhile",
		text: "below 1 ms", unit: unit("ms"), limit: 1, always: true,
		values: lockWaits,
	},
	{
		name: "a fleet of 4,000 and 9,000, messages of both ways",
		text: "at most 12 an agent-minute", unit: number, limit: 12, always: true,
		values: fleets(stream.FleetMessages),
	},
	{
		name: "the same, CPU without the database's driver",
		text: "at most 1.3 ms an agent-minute", unit: unit("ms"), limit: 1.3, always: true,
		values: fleets(stream.FleetRest),
	},
	{
		name: "9,000 agents, CPU: relayed, with one key changing, against connections of their own, with all ten",
		text: "at most a third", unit: times, limit: 1.0 / 3,
		values: func(r figure.Results) []float64 {
			return figure.Ratios(fleet(relayed, stream.FleetCPU)(r), fleet(stream.Fleet{Agents: 9000, Samples: stream.Samples}, stream.FleetCPU)(r))
		},
	},
	{
		name: "50,000 relayed agents",
		text: "below 1 core", unit: unit("cores"), limit: 1, always: true,
		values: fleet(manyRelayed, stream.FleetCores),
	},
	{
		name: "the same, resident",
		text: "below 5 GB", unit: gigabytes, limit: 5e9, always: true,
		values: func(r figure.Results) (values []float64) {
			for _, v := range fleet(manyRelayed, stream.FleetResident)(r) {
				values = append(values, v*float64(manyRelayed.Agents))
			}
			return values
		},
	},
	{
		name: "agent through a bridge that decodes, 2,000 connections, CPU: against httputil.ReverseProxy",
		text: "at most 1.3 times", unit: times, limit: 1.3,
		values: ratio(bridgedKey(bridged.Decoding, bridged.CPU), bridgedKey(bridged.Plain, bridged.CPU)),
	},
	{
		name: "the same, added to the 99th percentile of a call",
		text: "below 2 ms", unit: unit("ms"), limit: 2,
		values: func(r figure.Results) []float64 { return r.Values(bridgedKey(bridged.Decoding, bridged.Added)) },
	},
	{
		name: "the same, memory of a connection beyond that of httputil.ReverseProxy",
		text: "at most 8 KiB", unit: kibibytes, limit: 8 << 10,
		values: func(r figure.Results) []float64 {
			return differences(r.Values(bridgedKey(bridged.Decoding, bridged.Held)), r.Values(bridgedKey(bridged.Plain, bridged.Held)))
		},
	},
}

func bridgedKey(subject, metric string) figure.Key {
	return figure.Key{Section: bridged.Section, Case: bridged.Case(many), Subject: subject, Metric: metric}
}

// differences subtracts b from a, value by value.
func differences(a, b []float64) (values []float64) {
	for i := range min(len(a), len(b)) {
		values = append(values, a[i]-b[i])
	}
	return values
}

// Fleets that have bars.
var (
	ownConnections = []int{4000, 9000}
	relayed        = stream.Fleet{Agents: 9000, Samples: stream.Samples, Relayed: true}
	manyRelayed    = stream.Fleet{Agents: 50_000, Samples: stream.Samples, Relayed: true}
)

func fleet(f stream.Fleet, metric string) func(figure.Results) []float64 {
	return func(r figure.Results) []float64 {
		return r.Values(figure.Key{Section: stream.FleetSection, Case: f.Case(), Subject: stream.Fast, Metric: metric})
	}
}

// fleets returns the values of the fleets on connections of their own that have bars.
func fleets(metric string) func(figure.Results) []float64 {
	return func(r figure.Results) (values []float64) {
		for _, n := range ownConnections {
			values = append(values, fleet(stream.Fleet{Agents: n, Samples: stream.Samples}, metric)(r)...)
		}
		return values
	}
}

// lockWaits returns the longest wait for a lock of the service; 0 if there were none while
// they were looked for.
func lockWaits(r figure.Results) []float64 {
	var longest float64
	looked := false
	for _, run := range r {
		for _, f := range run.Figures {
			looked = looked || f.Section == stream.AcksSection && f.Subject == stream.Scraped
			if f.Section == stream.LocksSection && f.Case == stream.LocksOwn && f.Metric == stream.LockAtMost {
				longest = max(longest, slices.Max(f.Values))
			}
		}
	}
	if !looked {
		return nil
	}
	return []float64{longest}
}
