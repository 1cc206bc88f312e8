package render

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coder/agentstatsd/bench/bridged"
	"github.com/coder/agentstatsd/bench/database"
	"github.com/coder/agentstatsd/bench/figure"
	"github.com/coder/agentstatsd/bench/peer"
	"github.com/coder/agentstatsd/bench/scrape"
	"github.com/coder/agentstatsd/bench/stream"
	"github.com/coder/agentstatsd/bench/update"
)

// Parts of results, by the command that makes them.
const (
	Bench = "bench"
	Peers = "peers"
)

// column is a metric of a table, or its ratio to that of another subject.
type column struct {
	head   string
	metric string
	unit   func(float64) string
	// against is the subject that the ratio is to; empty: the values themselves.
	against string
}

// Page renders results as Markdown.
func Page(r figure.Results) []byte {
	p := &page{results: r}
	p.line("# Results")
	p.line("")
	p.line("Made by `make bench` and `make bench-peers`; do not edit. Medians, with the least and the most in brackets.")
	p.line("What is compared runs side by side in one run, in turns, each as a process of its own with Go's defaults;")
	p.line("ratios are medians of the ratios of each turn. The raw values are in [results.json](results.json).")
	p.line("")
	p.line("![main ratios](results.svg)")
	for _, part := range []string{Bench, Peers} {
		p.run(part)
	}
	p.bars()
	p.scrapes()
	p.memory()
	p.ingest()
	p.fleet()
	p.database()
	p.bridge()
	p.updates()
	p.idle()
	p.acks()
	p.growth()
	p.peers()
	return []byte(p.text.String())
}

type page struct {
	results figure.Results
	text    strings.Builder
}

func (p *page) line(text string) {
	p.text.WriteString(text)
	p.text.WriteByte('\n')
}

func (p *page) linef(format string, args ...any) { p.line(fmt.Sprintf(format, args...)) }

func (p *page) heading(text string) {
	p.line("")
	p.line("## " + text)
	p.line("")
}

func (p *page) row(cells ...string) { p.line("| " + strings.Join(cells, " | ") + " |") }

// table begins a table whose first columns are text.
func (p *page) table(heads ...string) {
	p.row(heads...)
	rules := make([]string, len(heads))
	for i := range rules {
		rules[i] = "---:"
	}
	rules[0] = "---"
	p.row(rules...)
}

// run writes where and with what one part was measured.
func (p *page) run(part string) {
	run, ok := p.results[part]
	if !ok {
		return
	}
	m := run.Machine
	p.heading(fmt.Sprintf("`make %s`", map[string]string{Bench: "bench", Peers: "bench-peers"}[part]))
	p.linef("%s, in %v, on %s with %d cores and %.0f GiB, Linux %s, %s %s.",
		run.Date.Format("2 January 2006"), (time.Duration(run.Seconds) * time.Second).String(),
		m.CPU, m.Cores, float64(m.MemoryBytes)/(1<<30), m.Kernel, m.Go, m.Platform)
	if run.Commit != "" {
		p.linef("The checkout was at `%s`.", run.Commit)
	}
	versions := make([]string, len(run.Modules))
	for i, module := range run.Modules {
		versions[i] = "`" + module.Path + "` " + module.Version
	}
	p.linef("Measured: %s.", strings.Join(versions, ", "))
	for _, note := range run.Notes {
		p.line("")
		p.line("- " + note)
	}
}

func (p *page) bars() {
	p.heading("The bars")
	p.table("figure", "bar", "seen", "met")
	for _, b := range bars {
		s := b.see(p.results)
		verdict := ""
		switch {
		case s.met:
			verdict = "yes"
		case s.measured:
			verdict = "**no**"
		}
		p.row(b.name, b.text, s.text, verdict)
	}
}

// rows renders one line for each subject that was measured, under a title if
// that is not empty; nothing if none was.
func (p *page) rows(title, section, name string, subjects []string, columns []column) {
	heads := []string{""}
	for _, c := range columns {
		heads = append(heads, c.head)
	}
	var rows [][]string
	for _, subject := range subjects {
		cells := []string{subject}
		measured := false
		for _, c := range columns {
			k := figure.Key{Section: section, Case: name, Subject: subject, Metric: c.metric}
			values := p.results.Values(k)
			if c.against != "" {
				k.Subject = c.against
				values = figure.Ratios(values, p.results.Values(k))
			}
			measured = measured || len(values) > 0
			cells = append(cells, cell(values, c.unit))
		}
		if measured {
			rows = append(rows, cells)
		}
	}
	if len(rows) == 0 {
		return
	}
	p.line("")
	if title != "" {
		p.line("**" + title + "**")
		p.line("")
	}
	p.table(heads...)
	for _, cells := range rows {
		p.row(cells...)
	}
}

// cell renders a median with its range.
func cell(values []float64, unit func(float64) string) string {
	s := figure.Summarize(values)
	switch {
	case s.N == 0:
		return ""
	case unit(s.Min) == unit(s.Max):
		return unit(s.Median)
	}
	return fmt.Sprintf("%s (%s to %s)", unit(s.Median), unit(s.Min), unit(s.Max))
}

func (p *page) scrapes() {
	p.heading("Scrape")
	p.line("The same series in all: 40 families, 3 to 6 labels, lines of some 196 bytes, over HTTP on loopback to a client that")
	p.line("reads and discards. Before each scrape of agentstatsd all its series get new values, except in \"nothing new\". The")
	p.line("copy limit serves the bytes that agentstatsd had answered from memory by net/http. Each answer of up to 100,000 series was")
	p.line("parsed by Prometheus's parser, and had all samples. VictoriaMetrics/metrics knows text only; gzip is added to it by")
	p.line("klauspost's gzhttp. coderd's Collector holds them in a map and makes their descriptors at each scrape; the other one keeps those.")
	for _, series := range []int{small, middle, large} {
		for _, ask := range scrape.Asks {
			p.rows(fmt.Sprintf("%s series, %v", grouped(int64(series)), ask), scrape.Section, scrape.Case(series, ask), scrape.Subjects, []column{
				{head: "first byte, ms", metric: scrape.FirstByte, unit: number},
				{head: "total, ms", metric: scrape.Total, unit: number},
				{head: "against agentstatsd", metric: scrape.Total, unit: times, against: scrape.Agentstatsd},
				{head: "CPU, ms", metric: scrape.CPU, unit: number},
				{head: "bytes", metric: scrape.Bytes, unit: number},
			})
		}
	}
}

func (p *page) memory() {
	p.heading("Memory of a series")
	p.line("Bytes a series after text was scraped: of the heap after a collection, all included, and resident before that, with")
	p.line("garbage and what the last scrape needed. A Collector makes its metrics for each scrape only.")
	for _, series := range []int{small, middle, large} {
		p.rows(grouped(int64(series))+" series", scrape.MemorySection, fmt.Sprint(series), scrape.Subjects, []column{
			{head: "heap", metric: scrape.HeapPerSeries, unit: number},
			{head: "resident", metric: scrape.RSSPerSeries, unit: number},
			{head: "its line", metric: scrape.BytesPerSeries, unit: number},
		})
	}
}

func (p *page) ingest() {
	p.heading("Reports")
	p.line("Reports of 30 samples with 2 labels each, over streams on connections of their own, to `agentstatsd serve` with its")
	p.line("defaults. Generated decoding is the same service given reports that begin with a field that it does not know. The limits")
	p.line("are a bare grpc-go server that frees what it receives: without any ack, and with one after as many reports as the service")
	p.line("has on the average. 8 streams send as fast as they may, 64 reports in flight; 2,000 at a fixed rate.")
	for _, connections := range []int{few, many} {
		p.rows(grouped(int64(connections))+" connections", stream.IngestSection, stream.Case(connections), stream.IngestSubjects, []column{
			{head: "CPU a report, us", metric: stream.CPUPerReport, unit: number},
			{head: "against discard", metric: stream.CPUPerReport, unit: times, against: stream.Discard},
			{head: "against discard and ack", metric: stream.CPUPerReport, unit: times, against: stream.Answering},
			{head: "reports a second", metric: stream.ReportsPerSec, unit: number},
			{head: "reports an ack", metric: stream.ReportsPerAck, unit: number},
		})
	}
}

// cases returns those that a section was measured in, in the order of the runs.
func (p *page) cases(section string) []string {
	var cases []string
	for _, run := range p.results {
		for _, f := range run.Figures {
			if f.Section == section && !slices.Contains(cases, f.Case) {
				cases = append(cases, f.Case)
			}
		}
	}
	return cases
}

func (p *page) fleet() {
	p.heading("A fleet")
	p.line("What an agent takes in a minute: agents of the real client on connections of their own, with the default intervals, which")
	p.line("load does not lengthen here,")
	p.line("30 samples or the 85 of Coder's own agent, and 10 metadata keys whose values all change each 10 s, on SQLite. For relayed")
	p.line("agents one of the keys changes each 10 s; their coderd has a connection for 2,000 of them. The service is scraped each 30 s,")
	p.line("as text with gzip. The time in the database's driver is by a profile. The limit is a bare grpc-go server that receives")
	p.line("as many bytes in as many messages on as many connections, and answers as many.")
	for _, c := range p.cases(stream.FleetSection) {
		p.rows(c, stream.FleetSection, c, stream.FleetSubjects, []column{
			{head: "CPU, ms", metric: stream.FleetCPU, unit: number},
			{head: "without the driver, ms", metric: stream.FleetRest, unit: number},
			{head: "in the driver, ms", metric: stream.FleetDatabase, unit: number},
			{head: "messages", metric: stream.FleetMessages, unit: number},
			{head: "cores", metric: stream.FleetCores, unit: number},
			{head: "longest scrape, ms", metric: stream.FleetScrape, unit: number},
			{head: "resident, bytes an agent", metric: stream.FleetResident, unit: number},
		})
	}
}

func (p *page) database() {
	p.heading("A database for half an hour")
	p.line("A PostgreSQL 15 with its defaults under relayed agents, which report 10 metadata keys each 10 s, half of them with new values,")
	p.line("and 30 samples each 30 s, which coderd watches. It is looked at each minute: medians of the middle and of the last third.")
	p.line("All samples are in [database.csv](database.csv). The service's intervals are not lengthened.")
	for _, c := range p.cases(database.Section) {
		p.line("")
		p.linef("%s:", c)
		p.line("")
		p.table("", "middle third", "last third", "against the middle")
		for _, subject := range append([]string{database.Log}, database.Tables...) {
			for _, metric := range database.Metrics {
				values := p.results.Values(figure.Key{Section: database.Section, Case: c, Subject: subject, Metric: metric})
				if len(values) < 3 {
					continue
				}
				middle, last := database.Thirds(values)
				was, is := figure.Summarize(middle).Median, figure.Summarize(last).Median
				ratio := ""
				if was > 0 {
					ratio = times(is / was)
				}
				p.row(subject+": "+metric, number(was), number(is), ratio)
			}
		}
	}
}

func (p *page) bridge() {
	p.heading("Through a bridge")
	p.line("What an agent takes in a minute of what stands between it and coderd: agents of Coder's protocol, with as many calls as")
	p.line("Coder's own make, 2.4 reports of 85 samples and 7.8 with metadata, to a stand-in coderd. Decoding is off for agents that say")
	p.line("another version, and without relaying what was decoded goes nowhere. Times are of calls, all on the same cores.")
	p.rows(grouped(many)+" connections", bridged.Section, bridged.Case(many), bridged.Subjects, []column{
		{head: "CPU, ms an agent-minute", metric: bridged.CPU, unit: number},
		{head: "against httputil.ReverseProxy", metric: bridged.CPU, unit: times, against: bridged.Plain},
		{head: "held, bytes a connection", metric: bridged.Held, unit: number},
		{head: "median, ms", metric: bridged.P50, unit: number},
		{head: "99th percentile, ms", metric: bridged.P99, unit: number},
		{head: "added to that, ms", metric: bridged.Added, unit: number},
	})
}

func (p *page) updates() {
	p.heading("Update of a sample")
	p.line("A report of 30 samples, all with new values, is taken in: by `Aggregator.Report`, and by a map whose keys are the")
	p.linef("sorted labels of each sample joined into a string. %s.", update.Case)
	p.rows("", update.Section, update.Case, update.Subjects, []column{
		{head: "ns a sample", metric: update.Nanoseconds, unit: number},
		{head: "against agentstatsd", metric: update.Nanoseconds, unit: times, against: update.Agentstatsd},
		{head: "allocations a sample", metric: update.Allocations, unit: number},
	})
}

func (p *page) idle() {
	p.heading("Idle streams")
	p.line("Resident memory of the server for each stream on a connection of its own: what is held after what is not in use was")
	p.line("given back to the system, the same after a report of 30 samples on each, and as it was after the connecting. Of the")
	p.line("service with its session; and of a bare grpc-go server with the same buffers, whose handler waits for a message.")
	for _, tls := range []bool{false, true} {
		p.rows(stream.IdleCase(tls), stream.IdleSection, stream.IdleCase(tls), stream.IdleSubjects, []column{
			{head: "held", metric: stream.HeldPerStream, unit: kibibytes},
			{head: "against bare gRPC", metric: stream.HeldPerStream, unit: times, against: stream.Discard},
			{head: "held after a report", metric: stream.HeldAfterReport, unit: kibibytes},
			{head: "with garbage", metric: stream.ResidentPerStream, unit: kibibytes},
		})
	}
}

func (p *page) acks() {
	p.heading("Acks under scrapes")
	p.linef("Reports at the rate that takes a third of a core, over %s; those series belong to agents that report", stream.AcksCase)
	p.line("every 30 s. Scrapes are plain and gzip in turns. Times from sending to receiving the ack, clients on the same cores.")
	p.rows("", stream.AcksSection, stream.AcksCase, []string{stream.Unscraped, stream.Scraped}, []column{
		{head: "median, ms", metric: stream.AckP50, unit: number},
		{head: "99th percentile, ms", metric: stream.AckP99, unit: number},
		{head: "longest, ms", metric: stream.AckMax, unit: number},
		{head: "cores of the service", metric: stream.Cores, unit: number},
		{head: "scrape plain, ms", metric: stream.ScrapePlain, unit: number},
		{head: "scrape gzip, ms", metric: stream.ScrapeGzip, unit: number},
	})
	p.locks()
}

// growth has each cost at three sizes, in one table.
func (p *page) growth() {
	p.heading("Growth")
	p.line("A service whose series belong to agents that report each 30 s, and 200 streams that report 500 times a second and wait for each ack,")
	p.line("while it is scraped again and again, a second apart (`make bench BENCHFLAGS=-only=growth`). The series are made by reports of agents without")
	p.line("a stream. A report is of one of these agents, from which the processor's caches have nothing. Stops are by Go's histogram of the collector's.")
	p.line("Waits for locks are as above.")
	for _, series := range []int{middle, large, huge} {
		name := fmt.Sprint(series)
		p.rows(grouped(int64(series))+" series", stream.GrowthSection, name, []string{stream.GrowthService}, []column{
			{head: stream.GrowthNew, metric: stream.GrowthNew, unit: number},
			{head: stream.GrowthReport, metric: stream.GrowthReport, unit: number},
			{head: stream.GrowthHeap, metric: stream.GrowthHeap, unit: number},
			{head: stream.GrowthResident, metric: stream.GrowthResident, unit: number},
		})
		p.rows("", stream.GrowthSection, name, stream.GrowthSubjects, []column{
			{head: stream.GrowthTotal, metric: stream.GrowthTotal, unit: number},
			{head: stream.GrowthScrape, metric: stream.GrowthScrape, unit: number},
			{head: stream.GrowthCPU, metric: stream.GrowthCPU, unit: number},
			{head: "ack, median, ms", metric: stream.AckP50, unit: number},
			{head: "99 %", metric: stream.AckP99, unit: number},
			{head: "99.9 %", metric: stream.AckP999, unit: number},
			{head: "longest", metric: stream.AckMax, unit: number},
			{head: stream.GrowthStop, metric: stream.GrowthStop, unit: number},
			{head: stream.GrowthLock, metric: stream.GrowthLock, unit: number},
			{head: "cores", metric: stream.Cores, unit: number},
		})
	}
}

// locks writes who waited for locks.
func (p *page) locks() {
	p.line("")
	p.line("Waits for locks meanwhile, by Go's profile of mutexes, by the place where the lock was let go. The longest is at most the")
	p.line("sum of what ended within 20 ms.")
	p.line("")
	var subjects [][2]string
	for _, run := range p.results {
		for _, f := range run.Figures {
			if f.Section == stream.LocksSection && f.Metric == stream.LockAtMost {
				subjects = append(subjects, [2]string{f.Case, f.Subject})
			}
		}
	}
	if len(subjects) == 0 {
		if lockWaits(p.results) != nil {
			p.line("There were none.")
		}
		return
	}
	slices.SortFunc(subjects, func(a, b [2]string) int { return strings.Compare(a[0]+a[1], b[0]+b[1]) })
	p.table("lock of", "let go in", "waits", "mean, ms", "longest at most, ms")
	for _, s := range subjects {
		k := figure.Key{Section: stream.LocksSection, Case: s[0], Subject: s[1]}
		cells := []string{s[0], "`" + s[1] + "`"}
		for _, metric := range []string{stream.LockWaits, stream.LockMean, stream.LockAtMost} {
			k.Metric = metric
			cells = append(cells, cell(p.results.Values(k), number))
		}
		p.row(cells...)
	}
}

func (p *page) peers() {
	if p.results[Peers] == nil {
		return
	}
	p.heading("Peers")
	p.line("Programs as processes, given the same series by their own protocols: agentstatsd over gRPC from agents that share a")
	p.line("connection; Pushgateway one group for each agent, without its consistency check; statsd_exporter lines with tags over TCP;")
	p.line("OpenTelemetry Collector OTLP over gRPC, served by its Prometheus exporter.")
	for _, series := range []int{small, middle, large} {
		p.rows(grouped(int64(series))+" series", peer.Section, peer.Case(series), peer.Subjects, []column{
			{head: "new series a second", metric: peer.NewRate, unit: number},
			{head: "samples a second", metric: peer.UpdateRate, unit: number},
			{head: "CPU a sample, us", metric: peer.CPUPerSample, unit: number},
			{head: "scrape plain, ms", metric: peer.ScrapePlain, unit: number},
			{head: "against agentstatsd", metric: peer.ScrapePlain, unit: times, against: peer.Agentstatsd},
			{head: "scrape gzip, ms", metric: peer.ScrapeGzip, unit: number},
			{head: "resident, bytes a series", metric: peer.RSSPerSeries, unit: number},
			{head: "the same after scrapes", metric: peer.RSSScraped, unit: number},
		})
	}
}
