package simulate

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/agentstatsd/client"
)

// defaultCoderReportInterval is that of agents whose coderd says none.
const defaultCoderReportInterval = 30 * time.Second

// maxLogged bounds the failures that are logged.
const maxLogged = 20

// CoderOptions are the knobs of agents that speak Coder's own protocol. A zero field takes
// its default.
type CoderOptions struct {
	// URLs of coderd, or of what stands before it, such as bridges: of http or https, at
	// least one. Each connection goes to one at random.
	URLs []*url.URL
	// TLS verifies those of https; nil: the system's certificates do.
	TLS *tls.Config
	// Tokens of the agents, one for each; at least one.
	Tokens []string
	// MetricsPerAgent is the number of forwarded samples in a report; default 30,
	// negative: none.
	MetricsPerAgent int
	// ReportInterval of each agent; default: what coderd says, or 30 s.
	ReportInterval time.Duration
	// MetadataInterval between two values of the keys that a template declares; default
	// 10 s.
	MetadataInterval time.Duration
	// Churn is the mean time until an agent connects anew; 0: it does not.
	Churn time.Duration
	// Steady agents change no state once they are ready.
	Steady bool
	// Duration until the agents end; 0: until the context ends.
	Duration time.Duration
	// Ramp is the time over which the agents connect; default 2.5 ms for each, at most
	// 30 s; negative: none.
	Ramp time.Duration
	// Keep: agents end as in a crash, and do not say that they are off.
	Keep bool
	// Seed of what agents say and do; any number.
	Seed uint64
	// Progress is where the progress is shown; nil: nowhere.
	Progress io.Writer
}

func (o CoderOptions) withDefaults() CoderOptions {
	o.MetricsPerAgent = max(cmp.Or(o.MetricsPerAgent, defaultMetricsPerAgent), 0)
	o.MetadataInterval = cmp.Or(o.MetadataInterval, defaultMetadataInterval)
	o.Ramp = max(cmp.Or(o.Ramp, min(maxDefaultRamp, time.Duration(len(o.Tokens))*rampPerAgent)), 0)
	return o
}

// validate returns what is wrong with options that have their defaults.
func (o CoderOptions) validate() error {
	for _, u := range o.URLs {
		if u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return errors.New("URLs: want such as https://coder.example.com")
		}
	}
	switch {
	case len(o.URLs) == 0:
		return errors.New("URLs: want at least 1")
	case len(o.Tokens) == 0:
		return errors.New("tokens: want at least 1")
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"report interval", o.ReportInterval},
		{"metadata interval", o.MetadataInterval},
		{"duration", o.Duration},
		{"churn", o.Churn},
	} {
		if d.value < 0 {
			return fmt.Errorf("%s: want at least 0, got %s", d.name, d.value)
		}
	}
	return nil
}

// RunCoder has agents live that speak Coder's own protocol: to a coderd that knows their
// tokens, through a bridge or not. It returns what they did when the duration is over or ctx
// is cancelled: what coderd answered counts as acked. The error is about the options only.
func RunCoder(ctx context.Context, opts CoderOptions, log *slog.Logger) (Summary, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return Summary{}, fmt.Errorf("simulate: %w", err)
	}
	f := &coderFleet{opts: opts, log: log, acks: &latencies{}, series: seriesOfAgents(opts.MetricsPerAgent)}
	started := time.Now()
	living, end := context.WithCancel(ctx)
	defer end()
	if opts.Duration > 0 {
		living, end = context.WithTimeout(ctx, opts.Duration)
		defer end()
	}
	var agents, progress sync.WaitGroup
	for n, token := range opts.Tokens {
		a := f.newAgent(n, token)
		after := time.Duration(float64(n) / float64(len(opts.Tokens)) * float64(opts.Ramp))
		agents.Go(func() { a.run(living, after) })
	}
	showing, stopShowing := context.WithCancel(context.WithoutCancel(ctx))
	if opts.Progress != nil {
		progress.Go(func() { showProgress(showing, opts.Progress, f.tally) })
	}
	agents.Wait()
	stopShowing()
	progress.Wait()
	return f.summary(time.Since(started)), nil
}

// coderFleet are agents that speak Coder's own protocol, and what they did.
type coderFleet struct {
	opts   CoderOptions
	series []series
	acks   *latencies
	log    *slog.Logger
	logged atomic.Int64

	connected, sessions, connects, failures        atomic.Int64
	reports, reportsAcked, samples, values, stored atomic.Int64
	// refused calls were answered with an error, others are those of states.
	refused, others, othersAcked atomic.Int64
}

func (f *coderFleet) newAgent(n int, token string) *coderAgent {
	random := rand.New(rand.NewPCG(f.opts.Seed, uint64(n)))
	return &coderAgent{
		fleet: f, token: token, random: random, node: int64(random.Uint64() >> 1),
		generator: newGenerator(f.series, f.opts.Seed, uint64(n)),
	}
}

// anyURL returns the URL of a connection.
func (f *coderFleet) anyURL(r *rand.Rand) *url.URL { return pick(r, f.opts.URLs) }

// failed counts a connection that could not be made or broke, or a call that was refused. The
// first ones are logged.
func (f *coderFleet) failed(counter *atomic.Int64, what string, err error) {
	counter.Add(1)
	if f.logged.Add(1) <= maxLogged {
		f.log.Warn(what, "error", err)
	}
}

func (f *coderFleet) tally() tally {
	return tally{
		agents: len(f.opts.Tokens), connected: int(f.connected.Load()),
		counts: client.Counts{
			Reports: f.reports.Load(), ReportsReceived: f.reportsAcked.Load(), Samples: f.samples.Load(),
			Metadata: f.values.Load(), MetadataDurable: f.stored.Load(), Refused: f.refused.Load(),
		},
		reconnects: max(0, f.sessions.Load()-f.connects.Load()), unexpected: f.others.Load() - f.othersAcked.Load(),
	}
}

func (f *coderFleet) summary(duration time.Duration) Summary {
	t := f.tally()
	// Agents that never connected are errors, too.
	lost := t.counts.Reports - t.counts.ReportsReceived + t.counts.Metadata - t.counts.MetadataDurable
	return Summary{
		Agents: t.agents, ReportsSent: t.counts.Reports, ReportsAcked: t.counts.ReportsReceived, SamplesSent: t.counts.Samples,
		MetadataSent: t.counts.Metadata, MetadataAcked: t.counts.MetadataDurable,
		Refused: t.counts.Refused, Errors: lost + t.unexpected + int64(t.agents) - f.connects.Load(), Reconnects: t.reconnects,
		DurationSeconds: duration.Seconds(), ReportAckSeconds: quantiles(f.acks),
	}
}
