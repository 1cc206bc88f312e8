package stream

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coder/agentstatsd/bench/figure"
	"github.com/coder/agentstatsd/bench/process"
	"github.com/coder/agentstatsd/bench/scrape"
)

// AcksSection and LocksSection of the figures.
const (
	AcksSection  = "acks"
	LocksSection = "lock waits"
)

// Cases of waits: for locks of the service, and of libraries.
const (
	LocksOwn       = "the service"
	LocksElsewhere = "libraries"
)

// Subjects of the comparison.
const (
	Unscraped = "no scrape"
	Scraped   = "a scrape every 5 s"
)

// Metrics of acks, and of waits for locks.
const (
	AckP50        = "median, ms"
	AckP99        = "99th percentile, ms"
	AckMax        = "longest, ms"
	ScrapePlain   = "scrape plain, ms"
	ScrapeGzip    = "scrape gzip, ms"
	Cores         = "cores used"
	Skipped       = "reports skipped"
	LockWaits     = "waits"
	LockMean      = "mean, ms"
	LockAtMost    = "longest at most, ms"
	ackSeries     = 1_000_000
	ackStreams    = 2000
	scrapeEvery   = 5 * time.Second
	calibration   = 4 * time.Second
	calibrateRate = 4000
	// thirdOfCore is the load that the reports are to make.
	thirdOfCore = 1.0 / 3
)

// AcksCase names the figures.
var AcksCase = fmt.Sprintf("%d connections, %d series", ackStreams, ackSeries)

// Acks measures how long reports wait for the acks that they request, at a third of one
// core's load. It alternates between no scrapes and scrapes of a million series. What
// waited for locks during the scrapes is looked at too.
func Acks(ctx context.Context, run *figure.Run, dir string, rounds int, length time.Duration) error {
	data, err := os.MkdirTemp(dir, "acks-")
	if err != nil {
		return fmt.Errorf("make a data directory: %w", err)
	}
	var ready serviceReady
	service, err := process.StartSelf(ctx, "stream-service", serviceArgs{
		Dir: data, Token: benchToken, Series: ackSeries, Locks: true,
	}, &ready)
	if err != nil {
		return err
	}
	defer service.Stop()
	if err := Register(ctx, ready.GRPC, benchToken, "", ackStreams); err != nil {
		return err
	}
	senders, err := process.StartSelf(ctx, "stream-senders", SendersArgs{
		Target: ready.GRPC, Count: ackStreams, Samples: Samples, Acking: Now,
	}, nil)
	if err != nil {
		return err
	}
	defer senders.Stop()
	a := &acks{run: run, service: service, senders: senders, addr: ready.HTTP}
	if err := a.calibrate(); err != nil {
		return err
	}
	for range rounds {
		for _, subject := range []string{Unscraped, Scraped} {
			if err := a.measure(ctx, subject, length); err != nil {
				return fmt.Errorf("%s: %w", subject, err)
			}
		}
	}
	return nil
}

type acks struct {
	run              *figure.Run
	service, senders *process.Child
	addr             string
	rate             float64
}

func (a *acks) add(subject, metric string, v float64) {
	a.run.Add(figure.Key{Section: AcksSection, Case: AcksCase, Subject: subject, Metric: metric}, v)
}

// calibrate finds the rate of reports that takes a third of a core.
func (a *acks) calibrate() error {
	a.rate = calibrateRate
	for range 2 { // the first time warms up
		before, err := a.service.CPU()
		if err != nil {
			return err
		}
		var tally Tally
		if err := a.senders.Call("paced", PacedArgs{Milliseconds: int(calibration.Milliseconds()), Rate: a.rate}, &tally); err != nil {
			return err
		}
		after, err := a.service.CPU()
		if err != nil {
			return err
		}
		a.rate = thirdOfCore * float64(tally.Sent) / (after - before).Seconds()
	}
	return nil
}

func (a *acks) measure(ctx context.Context, subject string, length time.Duration) error {
	if subject == Scraped {
		if err := a.service.Call("watch locks", nil, nil); err != nil {
			return err
		}
	}
	before, err := a.service.CPU()
	if err != nil {
		return err
	}
	start := time.Now()
	var tally Tally
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return a.senders.Call("paced", PacedArgs{Milliseconds: int(length.Milliseconds()), Rate: a.rate}, &tally)
	})
	if subject == Scraped {
		group.Go(func() error { return a.scrape(ctx, start.Add(length)) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	after, err := a.service.CPU()
	if err != nil {
		return err
	}
	a.add(subject, AckP50, tally.P50)
	a.add(subject, AckP99, tally.P99)
	a.add(subject, AckMax, tally.Max)
	a.add(subject, Skipped, float64(tally.Skipped))
	a.add(subject, Cores, (after-before).Seconds()/time.Since(start).Seconds())
	if subject == Scraped {
		return a.locks()
	}
	return nil
}

// scrape scrapes every 5 s until the deadline, plain and compressed in turns.
func (a *acks) scrape(ctx context.Context, deadline time.Time) error {
	client := scrape.NewClient()
	for i := 0; ; i++ {
		next := time.Now().Add(scrapeEvery)
		ask, metric := scrape.Ask{Format: scrape.Text}, ScrapePlain
		if i%2 == 1 {
			ask.Gzip, metric = true, ScrapeGzip
		}
		seen, err := client.Scrape(ctx, a.addr, ask, nil)
		if err != nil {
			return err
		}
		a.add(Scraped, metric, float64(seen.Total)/float64(time.Millisecond))
		if next.After(deadline) {
			return nil
		}
		select {
		case <-time.After(time.Until(next)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// locks notes who waited for locks.
func (a *acks) locks() error {
	var waits []LockWait
	if err := a.service.Call("locks", nil, &waits); err != nil {
		return err
	}
	for _, w := range waits {
		c := LocksElsewhere
		if w.Own {
			c = LocksOwn
		}
		for metric, v := range map[string]float64{LockWaits: float64(w.Waits), LockMean: w.MeanMS, LockAtMost: w.AtMostMS} {
			a.run.Add(figure.Key{Section: LocksSection, Case: c, Subject: w.Where, Metric: metric}, v)
		}
	}
	return nil
}
