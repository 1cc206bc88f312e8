package stream

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/metrics"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/coder/agentstatsd/bench/figure"
	"github.com/coder/agentstatsd/bench/load"
	"github.com/coder/agentstatsd/bench/process"
	"github.com/coder/agentstatsd/bench/scrape"
)

// GrowthSection of the figures: what becomes of each cost, and of acks, as series become more.
const GrowthSection = "growth"

// Subjects of growth: what goes on while agents report.
const (
	GrowthQuiet    = "no scrape"
	GrowthGzip     = "whole, gzip"
	GrowthShards   = "4 shards at once, gzip"
	GrowthPlain    = "whole, plain"
	GrowthProtobuf = "whole, protobuf gzip"
	// GrowthService is the service itself, for what does not depend on scrapes.
	GrowthService = "the service"
)

// GrowthSubjects are those with acks.
var GrowthSubjects = []string{GrowthQuiet, GrowthGzip, GrowthShards, GrowthPlain, GrowthProtobuf}

// Metrics of growth.
const (
	GrowthNew      = "new series, ns"
	GrowthReport   = "report of 32 samples, CPU, ns"
	GrowthHeap     = "heap, bytes a series"
	GrowthResident = "resident, bytes a series"
	// GrowthScrape is the time of a scrape, of shards that of the longest, for each series
	// of the whole.
	GrowthScrape = "scrape, ns a series"
	GrowthTotal  = "scrape, ms"
	// GrowthCPU is what a scrape takes of the service, beyond what it takes without one.
	GrowthCPU = "CPU of a scrape, ns a series"
	AckP999   = "99.9th percentile, ms"
	// GrowthStop is the longest stop of all goroutines by the collector.
	GrowthStop = "longest stop of all, ms"
	// GrowthLock bounds the longest wait for a lock of the service.
	GrowthLock = "longest wait for a lock, ms"
)

// Growth is how many series there are, and how long acks are watched of each subject.
type Growth struct {
	Series int
	// Rounds of all subjects, each for a window.
	Rounds int
	Window time.Duration
}

// Case names the figures.
func (g Growth) Case() string { return fmt.Sprint(g.Series) }

// growthStreams report, all together growthRate times a second, beside the agents of the series.
const (
	growthStreams = 200
	growthRate    = 500
	growthReports = 20_000
	// growthShards are scraped at once.
	growthShards = 4
)

// MeasureGrowth adds the figures of a service with that many series to run. Their agents report
// each 30 s.
func MeasureGrowth(ctx context.Context, run *figure.Run, dir string, g Growth) error {
	data, err := os.MkdirTemp(dir, "growth-")
	if err != nil {
		return fmt.Errorf("make a data directory: %w", err)
	}
	var ready serviceReady
	service, err := process.StartSelf(ctx, "stream-service", serviceArgs{Dir: data, Token: benchToken, Series: g.Series, Locks: true}, &ready)
	if err != nil {
		return err
	}
	defer service.Stop()
	m := &growth{run: run, service: service, addr: ready.HTTP, size: g}
	m.add(GrowthService, GrowthNew, ready.NanosecondsNew)
	m.add(GrowthService, GrowthHeap, ready.HeapPerSeries)
	var report float64
	if err := service.Call("report", growthReports, &report); err != nil {
		return err
	}
	m.add(GrowthService, GrowthReport, report)
	if err := Register(ctx, ready.GRPC, benchToken, "", growthStreams); err != nil {
		return err
	}
	m.senders, err = process.StartSelf(ctx, "stream-senders", SendersArgs{
		Target: ready.GRPC, Count: growthStreams, Samples: Samples, Acking: Now,
	}, nil)
	if err != nil {
		return err
	}
	defer m.senders.Stop()
	for range g.Rounds {
		for _, subject := range GrowthSubjects {
			if err := m.measure(ctx, subject); err != nil {
				return fmt.Errorf("%s: %w", subject, err)
			}
		}
	}
	resident, err := service.RSS()
	if err != nil {
		return err
	}
	m.add(GrowthService, GrowthResident, float64(resident)/float64(g.Series))
	return nil
}

type growth struct {
	run              *figure.Run
	service, senders *process.Child
	addr             string
	size             Growth
	// quiet are the cores that the service took in the last window without scrapes.
	quiet float64
}

func (m *growth) add(subject, metric string, v float64) {
	m.run.Add(figure.Key{Section: GrowthSection, Case: m.size.Case(), Subject: subject, Metric: metric}, v)
}

// asks are the scrapes of a subject, which are made at once.
func asks(subject string) []scrape.Ask {
	switch subject {
	case GrowthGzip:
		return []scrape.Ask{{Format: scrape.Text, Gzip: true}}
	case GrowthPlain:
		return []scrape.Ask{{Format: scrape.Text}}
	case GrowthProtobuf:
		return []scrape.Ask{{Format: scrape.Protobuf, Gzip: true}}
	case GrowthShards:
		shards := make([]scrape.Ask, growthShards)
		for i := range shards {
			shards[i] = scrape.Ask{Format: scrape.Text, Gzip: true, Shard: fmt.Sprintf("%d/%d", i, growthShards)}
		}
		return shards
	}
	return nil
}

func (m *growth) measure(ctx context.Context, subject string) error {
	if err := m.service.Call("watch locks", nil, nil); err != nil {
		return err
	}
	before, err := m.service.CPU()
	if err != nil {
		return err
	}
	start := time.Now()
	var tally Tally
	group, scraping := errgroup.WithContext(ctx)
	group.Go(func() error {
		return m.senders.Call("paced", PacedArgs{Milliseconds: int(m.size.Window.Milliseconds()), Rate: growthRate}, &tally)
	})
	scrapes := 0
	group.Go(func() (err error) {
		scrapes, err = m.scrape(scraping, subject, start.Add(m.size.Window))
		return err
	})
	if err := group.Wait(); err != nil {
		return err
	}
	after, err := m.service.CPU()
	if err != nil {
		return err
	}
	m.add(subject, AckP50, tally.P50)
	m.add(subject, AckP99, tally.P99)
	m.add(subject, AckP999, tally.P999)
	m.add(subject, AckMax, tally.Max)
	cores, seconds := (after-before).Seconds()/time.Since(start).Seconds(), time.Since(start).Seconds()
	m.add(subject, Cores, cores)
	if scrapes == 0 {
		m.quiet = cores
	} else {
		m.add(subject, GrowthCPU, (cores-m.quiet)*seconds*1e9/float64(scrapes*m.size.Series))
	}
	var stop float64
	if err := m.service.Call("stops", nil, &stop); err != nil {
		return err
	}
	m.add(subject, GrowthStop, stop)
	var waits []LockWait
	if err := m.service.Call("locks", nil, &waits); err != nil {
		return err
	}
	longest := 0.0
	for _, w := range waits {
		if w.Own {
			longest = max(longest, w.AtMostMS)
		}
	}
	m.add(subject, GrowthLock, longest)
	return nil
}

// scrape makes the scrapes of a subject again and again, until the deadline. It returns how many.
func (m *growth) scrape(ctx context.Context, subject string, deadline time.Time) (n int, err error) {
	for len(asks(subject)) > 0 && time.Now().Before(deadline) {
		start := time.Now()
		all, together := errgroup.WithContext(ctx)
		for _, ask := range asks(subject) {
			all.Go(func() error {
				_, err := scrape.NewClient().Scrape(together, m.addr, ask, nil)
				return err
			})
		}
		if err := all.Wait(); err != nil {
			return n, err
		}
		n++
		took := time.Since(start)
		m.add(subject, GrowthTotal, float64(took)/float64(time.Millisecond))
		m.add(subject, GrowthScrape, float64(took)/float64(m.size.Series))
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return n, ctx.Err()
		}
	}
	return n, nil
}

// stopWatch looks at Go's histogram of the collector's stops of all goroutines.
type stopWatch struct{ before []uint64 }

func (w *stopWatch) look() *metrics.Float64Histogram {
	sample := []metrics.Sample{{Name: "/sched/pauses/total/gc:seconds"}}
	metrics.Read(sample)
	return sample[0].Value.Float64Histogram()
}

func (w *stopWatch) start() { w.before = w.look().Counts }

// longest returns the lower bound of the longest stop since start, in ms. Bounds are within an
// eighth of each other.
func (w *stopWatch) longest() float64 {
	h := w.look()
	for i := len(h.Counts) - 1; i >= 0; i-- {
		if h.Counts[i] > w.before[i] {
			return max(0, h.Buckets[i]*1000)
		}
	}
	return 0
}

// threadCPU returns the processor time of the calling thread.
func threadCPU() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		return 0, fmt.Errorf("processor time of a thread: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

// timeReports returns how many ns of processor time a report of one of the agents without a stream takes, whose
// series are not in the processor's caches.
func (s *service) timeReports(agents, n int) (float64, error) {
	r := load.NewReport(seriesAgents, load.Forwarded)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := threadCPU()
	if err != nil {
		return 0, err
	}
	for i := range n {
		agent := seriesAgents + i*7919%agents // in no order
		r.Of(agent, i)
		if err := scrape.Take(s.agg, agent, time.Now(), r); err != nil {
			return 0, err
		}
	}
	after, err := threadCPU()
	return float64(after-before) / float64(n), err
}
