// Package peer compares the service with programs that people would run in its
// place: Pushgateway, statsd_exporter and the OpenTelemetry Collector. Each is a
// process with its usual configuration, and is given the same series by its own
// protocol.
package peer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/coder/agentstatsd/bench/figure"
	"github.com/coder/agentstatsd/bench/load"
	"github.com/coder/agentstatsd/bench/process"
	"github.com/coder/agentstatsd/bench/scrape"
)

// Section of the figures.
const Section = "peers"

// Metrics of a peer.
const (
	NewRate      = "new series a second"
	UpdateRate   = "samples a second"
	CPUPerSample = "CPU, us a sample"
	ScrapePlain  = "scrape plain, ms"
	ScrapeGzip   = "scrape gzip, ms"
	RSSPerSeries = "resident, bytes a series"
	RSSScraped   = "resident after scrapes, bytes a series"
)

// Subjects in the order in which they are shown.
var Subjects = []string{Agentstatsd, Pushgateway, StatsdExporter, Collector}

// Options of a comparison.
type Options struct {
	// Agentstatsd is the binary; Dir has those of the peers. One that is not
	// there is left out, with a note.
	Agentstatsd, Dir string
	// Temp is for files of the comparison.
	Temp string
	// Series, and how often they are updated and scraped.
	Series, Rounds int
	// Patience is how long a step may take.
	Patience time.Duration
}

// Case names the figures for that many series.
func Case(series int) string { return fmt.Sprintf("%d series", series) }

// peer is a running program that can be given series.
type peer struct {
	subject string
	process *process.Process
	// http is where it is scraped.
	http string
	// send sends the samples of all agents in a round, and returns when they are
	// sent or, if acked, taken in.
	send  func(ctx context.Context, round int) error
	acked bool
	stop  func()
}

// Compare compares the peers with that many series and adds the figures to run.
func Compare(ctx context.Context, run *figure.Run, opts Options) error {
	c := &comparison{Options: opts, run: run, client: scrape.NewClient()}
	defer c.stop()
	for _, subject := range Subjects {
		p, err := starters[subject](ctx, opts)
		if errors.Is(err, os.ErrNotExist) {
			run.Note("%s was not built, so it is left out.", subject)
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", subject, err)
		}
		p.subject = subject
		c.peers = append(c.peers, p)
	}
	if err := c.ingest(ctx); err != nil {
		return err
	}
	return c.scrape(ctx)
}

type comparison struct {
	Options
	run    *figure.Run
	peers  []*peer
	client *scrape.Client
}

func (c *comparison) stop() {
	for _, p := range c.peers {
		p.stop()
	}
}

func (c *comparison) add(p *peer, metric string, v float64) {
	c.run.Add(figure.Key{Section: Section, Case: Case(c.Series), Subject: p.subject, Metric: metric}, v)
}

// giveUp leaves a peer out from here on, and says why.
func (c *comparison) giveUp(i int, doing string, err error) {
	reason := err.Error()
	if errors.Is(err, context.DeadlineExceeded) {
		reason = fmt.Sprintf("it took longer than %v", c.Patience)
	}
	c.run.Note("%s with %d series: %s was given up: %s.", c.peers[i].subject, c.Series, doing, reason)
	c.peers[i].stop()
	c.peers = append(c.peers[:i], c.peers[i+1:]...)
}

func (c *comparison) ingest(ctx context.Context) error {
	for round := range 1 + c.Rounds {
		for i := 0; i < len(c.peers); i++ {
			p := c.peers[i]
			elapsed, cpu, err := c.timed(ctx, p, round)
			if err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				c.giveUp(i, "taking them in", err)
				i--
				continue
			}
			rate := float64(c.Series) / elapsed.Seconds()
			if round == 0 {
				c.add(p, NewRate, rate)
				continue
			}
			c.add(p, UpdateRate, rate)
			c.add(p, CPUPerSample, float64(cpu)/float64(time.Microsecond)/float64(c.Series))
			if err := c.addRSS(p, RSSPerSeries); err != nil {
				return err
			}
		}
	}
	return nil
}

// timed sends a round and returns what it took.
func (c *comparison) timed(ctx context.Context, p *peer, round int) (elapsed, cpu time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.Patience)
	defer cancel()
	before, err := p.process.CPU()
	if err != nil {
		return 0, 0, err
	}
	start := time.Now()
	if err := p.send(ctx, round); err != nil {
		return 0, 0, err
	}
	end := time.Now()
	if !p.acked {
		if end, err = quiet(ctx, p.process); err != nil {
			return 0, 0, err
		}
	}
	after, err := p.process.CPU()
	return end.Sub(start), after - before, err
}

const (
	// quietStep is how often a process is looked at, and quietFor how long it must
	// do next to nothing.
	quietStep = 10 * time.Millisecond
	quietFor  = 300 * time.Millisecond
	// quietShare of a step is next to nothing.
	quietShare = 0.1
)

// quiet waits until a process that does not say so has nothing more to do, and
// returns since when.
func quiet(ctx context.Context, p *process.Process) (time.Time, error) {
	last, err := p.CPU()
	since := time.Now()
	for at := since; err == nil && at.Sub(since) < quietFor; {
		select {
		case <-time.After(quietStep):
		case <-ctx.Done():
			return since, ctx.Err()
		}
		now := time.Now()
		var cpu time.Duration
		if cpu, err = p.CPU(); float64(cpu-last) > quietShare*float64(now.Sub(at)) {
			since = now
		}
		last, at = cpu, now
	}
	return since, err
}

// checkBelow is the most series of which the answers of all are parsed.
const checkBelow = 100_000

func (c *comparison) scrape(ctx context.Context) error {
	for round := range c.Rounds {
		for i := 0; i < len(c.peers); i++ {
			err := c.scrapePeer(ctx, c.peers[i], round == 0)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				c.giveUp(i, "scraping", err)
				i--
			}
		}
	}
	return nil
}

func (c *comparison) scrapePeer(ctx context.Context, p *peer, first bool) error {
	ctx, cancel := context.WithTimeout(ctx, c.Patience)
	defer cancel()
	for _, compressed := range []bool{false, true} {
		ask, metric := scrape.Ask{Format: scrape.Text, Gzip: compressed}, ScrapePlain
		if compressed {
			metric = ScrapeGzip
		}
		if first && (c.Series <= checkBelow || p.subject == Agentstatsd) {
			file := filepath.Join(c.Temp, "peer")
			n, err := c.client.Count(ctx, p.http, ask, file, load.Families())
			if err != nil {
				return err
			}
			if n != c.Series {
				return fmt.Errorf("it has %d samples where %d were sent", n, c.Series)
			}
		}
		seen, err := c.client.Scrape(ctx, p.http, ask, nil)
		if err != nil {
			return err
		}
		c.add(p, metric, float64(seen.Total)/float64(time.Millisecond))
	}
	return c.addRSS(p, RSSScraped)
}

// addRSS notes what is resident now.
func (c *comparison) addRSS(p *peer, metric string) error {
	rss, err := p.process.RSS()
	if err != nil {
		return err
	}
	c.add(p, metric, float64(rss)/float64(c.Series))
	return nil
}
