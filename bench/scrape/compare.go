package scrape

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/coder/agentstatsd/bench/figure"
	"github.com/coder/agentstatsd/bench/load"
	"github.com/coder/agentstatsd/bench/process"
)

// Section of the figures, and that of memory, which is taken on the way.
const (
	Section       = "scrape"
	MemorySection = "series memory"
)

// Metrics of a scrape and of memory.
const (
	FirstByte      = "first byte, ms"
	Total          = "total, ms"
	CPU            = "CPU, ms"
	Bytes          = "bytes"
	HeapPerSeries  = "heap, bytes a series"
	RSSPerSeries   = "resident, bytes a series"
	BytesPerSeries = "bytes a line"
)

// Asks in the order in which they are compared: memory is looked at between text
// and protobuf.
var Asks = []Ask{{Format: Text}, {Format: Text, Gzip: true}, {Format: Protobuf}, {Format: Protobuf, Gzip: true}}

// Subjects in the order in which they are shown.
var Subjects = []string{Agentstatsd, Unchanged, Copy, Victoria, GaugeVec, Collector, CoderdWay}

// Size is how many series are compared, and how often.
type Size struct {
	Series int
	// Rounds of the fast subjects, SlowRounds of those that take tens of seconds
	// at a million.
	Rounds, SlowRounds int
}

// Case names the figures of an ask for that many series.
func Case(series int, ask Ask) string { return fmt.Sprintf("%d %v", series, ask) }

// checkBelow is the most series whose answers are parsed to compare them.
const checkBelow = 100_000

// comparison is one size with its children.
type comparison struct {
	Size
	run      *figure.Run
	dir      string
	children map[string]*process.Child
	addrs    map[string]string
	client   *Client
}

// Compare compares scrapes of one size and adds the figures to run. Files are
// kept in dir meanwhile.
func Compare(ctx context.Context, run *figure.Run, dir string, size Size) error {
	c := &comparison{
		Size: size, run: run, dir: dir, client: NewClient(),
		children: make(map[string]*process.Child), addrs: make(map[string]string),
	}
	defer c.stop()
	for _, subject := range []string{Agentstatsd, Victoria, GaugeVec, Collector, CoderdWay} {
		if err := c.start(ctx, subject, size.Series); err != nil {
			return err
		}
	}
	if err := c.startCopy(ctx); err != nil {
		return err
	}
	for i, ask := range Asks {
		if ask.Format == Protobuf && Asks[i-1].Format == Text {
			if err := c.memory(); err != nil {
				return err
			}
		}
		if err := c.compare(ctx, ask); err != nil {
			return fmt.Errorf("%v of %d series: %w", ask, size.Series, err)
		}
	}
	return nil
}

func (c *comparison) start(ctx context.Context, subject string, args any) error {
	var addr string
	child, err := process.StartSelf(ctx, "scrape-"+subject, args, &addr)
	if err != nil {
		return err
	}
	c.children[subject], c.addrs[subject] = child, addr
	return nil
}

func (c *comparison) stop() {
	for _, child := range c.children {
		child.Stop()
	}
}

// startCopy keeps what the service answers, and starts whoever serves just that.
// Protobuf is asked for in a child of its own, so that the service that memory is
// looked at of has served text only.
func (c *comparison) startCopy(ctx context.Context) error {
	var addr string
	other, err := process.StartSelf(ctx, "scrape-"+Agentstatsd, c.Series, &addr)
	if err != nil {
		return err
	}
	defer other.Stop()
	files := make(map[string]string)
	for _, ask := range Asks {
		file := filepath.Join(c.dir, "copy "+ask.String())
		if err := c.client.keep(ctx, addr, ask, file); err != nil {
			return err
		}
		files[ask.String()] = file
	}
	return c.start(ctx, Copy, files)
}

// takes reports whether a subject knows the format. What coderd's way costs is
// seen in text.
func takes(subject string, ask Ask) bool {
	return ask.Format == Text || subject != Victoria && subject != CoderdWay
}

func isSlow(subject string) bool {
	return subject == Collector || subject == CoderdWay || subject == GaugeVec
}

func (c *comparison) compare(ctx context.Context, ask Ask) error {
	for _, subject := range Subjects {
		if !takes(subject, ask) {
			continue
		}
		if err := c.check(ctx, subject, ask); err != nil {
			return fmt.Errorf("%s: %w", subject, err)
		}
	}
	for round := range c.Rounds {
		for _, subject := range Subjects {
			if !takes(subject, ask) || isSlow(subject) && round >= c.SlowRounds {
				continue
			}
			if err := c.scrape(ctx, subject, ask); err != nil {
				return fmt.Errorf("%s: %w", subject, err)
			}
		}
	}
	return nil
}

// check parses an answer, which warms up too. What takes tens of seconds is not
// asked twice: its samples were counted at the smaller sizes.
func (c *comparison) check(ctx context.Context, subject string, ask Ask) error {
	if c.Series > checkBelow && subject != Agentstatsd && subject != Copy {
		return nil
	}
	n, err := c.client.Count(ctx, c.address(subject), ask, filepath.Join(c.dir, "answer"), load.Families())
	if err != nil {
		return err
	}
	if n != c.Series {
		return fmt.Errorf("want %d samples, got %d", c.Series, n)
	}
	return nil
}

func (c *comparison) child(subject string) *process.Child {
	if subject == Unchanged {
		subject = Agentstatsd
	}
	return c.children[subject]
}

func (c *comparison) address(subject string) string {
	if subject == Unchanged {
		subject = Agentstatsd
	}
	return c.addrs[subject]
}

// idleTime is how long a child may still work after the last command.
const idleTime = 20 * time.Millisecond

func (c *comparison) scrape(ctx context.Context, subject string, ask Ask) error {
	child := c.child(subject)
	if subject == Agentstatsd {
		if err := child.Call("update", nil, nil); err != nil {
			return err
		}
	}
	time.Sleep(idleTime)
	before, err := child.CPU()
	if err != nil {
		return err
	}
	seen, err := c.client.Scrape(ctx, c.address(subject), ask, nil)
	if err != nil {
		return err
	}
	after, err := child.CPU()
	if err != nil {
		return err
	}
	add := func(metric string, v float64) {
		c.run.Add(figure.Key{Section: Section, Case: Case(c.Series, ask), Subject: subject, Metric: metric}, v)
	}
	add(FirstByte, milliseconds(seen.FirstByte))
	add(Total, milliseconds(seen.Total))
	add(CPU, milliseconds(after-before))
	add(Bytes, float64(seen.Bytes))
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// memory notes what a series takes.
func (c *comparison) memory() error {
	for _, subject := range []string{Agentstatsd, Victoria, GaugeVec, Collector} {
		child := c.children[subject]
		rss, err := child.RSS()
		if err != nil {
			return err
		}
		var heap int64
		if err := child.Call("heap", nil, &heap); err != nil {
			return err
		}
		add := func(metric string, v int64) {
			c.run.Add(figure.Key{
				Section: MemorySection, Case: fmt.Sprint(c.Series), Subject: subject, Metric: metric,
			}, float64(v)/float64(c.Series))
		}
		add(HeapPerSeries, heap)
		add(RSSPerSeries, rss)
	}
	lines := c.run.Values(figure.Key{Section: Section, Case: Case(c.Series, Ask{Format: Text}), Subject: Unchanged, Metric: Bytes})
	if len(lines) == 0 {
		return errors.New("text was not scraped")
	}
	c.run.Add(figure.Key{
		Section: MemorySection, Case: fmt.Sprint(c.Series), Subject: Agentstatsd, Metric: BytesPerSeries,
	}, lines[len(lines)-1]/float64(c.Series))
	return nil
}
