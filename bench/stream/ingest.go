package stream

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/coder/agentstatsd/bench/figure"
	"github.com/coder/agentstatsd/bench/process"
)

// IngestSection of the figures.
const IngestSection = "ingest"

// Subjects of the comparison.
const (
	// Fast is the service; Generated the same, given reports with a field that it
	// does not know, which it has the generated code decode.
	Fast      = "agentstatsd"
	Generated = "agentstatsd, generated decoding"
	// Discard receives and forgets, Answering also acks as often as the service.
	Discard   = "receive and discard"
	Answering = "receive, discard and ack"
)

// IngestSubjects in the order in which they are shown.
var IngestSubjects = []string{Fast, Generated, Answering, Discard}

// Metrics of ingest.
const (
	CPUPerReport  = "CPU, us a report"
	ReportsPerSec = "reports a second"
	ReportsPerAck = "reports an ack"
)

// Samples of a report.
const Samples = 30

// Load is how reports are sent.
type Load struct {
	Connections int
	// Rate of all connections together, a second; 0: as fast as may be.
	Rate         float64
	Rounds       int
	Milliseconds int // of each round
}

// Case names the figures of a load.
func Case(connections int) string { return fmt.Sprintf("%d connections", connections) }

// warmup comes before the first round.
const warmup = 1500

// taker is a server with its senders.
type taker struct {
	subject string
	server  interface {
		CPU() (time.Duration, error)
		Stop()
	}
	// received returns how many reports the server has seen; nil: it acks them.
	received func() (int64, error)
	senders  *process.Child
	before   int64 // what was sent so far
}

// Ingest compares what a report of 30 samples takes, and adds the figures to
// run.
func Ingest(ctx context.Context, run *figure.Run, binary, dir string, load Load) error {
	var takers []*taker
	defer func() {
		for _, t := range takers {
			t.senders.Stop()
			t.server.Stop()
		}
	}()
	reportsPerAck := 1.0
	for _, subject := range []string{Fast, Generated, Discard, Answering} {
		t, err := startTaker(ctx, subject, binary, dir, load.Connections, reportsPerAck)
		if err != nil {
			return fmt.Errorf("%s: %w", subject, err)
		}
		takers = append(takers, t)
		warm := load
		warm.Milliseconds = warmup
		seen, err := t.measure(ctx, warm)
		if err != nil {
			return fmt.Errorf("%s: warm up: %w", subject, err)
		}
		if subject == Fast {
			reportsPerAck = seen.reportsPerAck
		}
	}
	for range load.Rounds {
		for _, t := range takers {
			seen, err := t.measure(ctx, load)
			if err != nil {
				return fmt.Errorf("%s: %w", t.subject, err)
			}
			add := func(metric string, v float64) {
				run.Add(figure.Key{Section: IngestSection, Case: Case(load.Connections), Subject: t.subject, Metric: metric}, v)
			}
			add(CPUPerReport, seen.cpuPerReport)
			add(ReportsPerSec, seen.reportsPerSecond)
			if seen.reportsPerAck > 0 {
				add(ReportsPerAck, seen.reportsPerAck)
			}
		}
	}
	return nil
}

func startTaker(ctx context.Context, subject, binary, dir string, connections int, reportsPerAck float64) (*taker, error) {
	t := &taker{subject: subject}
	args := SendersArgs{Count: connections, Samples: Samples, Acking: Always}
	switch subject {
	case Fast, Generated:
		args.Unknown = subject == Generated
		// A busy stream sends more than an agent may by default.
		service, err := StartAgentstatsd(ctx, binary, dir, "--agent-message-rate=1000000", "--agent-message-burst=1000000",
			"--agent-byte-rate=1000000000", "--agent-byte-burst=1000000000")
		if err != nil {
			return nil, err
		}
		t.server, args.Target = service, service.GRPC
		if err := Register(ctx, service.GRPC, service.Token, "", connections); err != nil {
			service.Stop()
			return nil, err
		}
	default:
		var limit discardArgs
		args.Acking = Never
		if subject == Answering {
			limit.AckEvery = max(1, int(math.Round(reportsPerAck)))
			args.Acking = Some
		}
		child, err := process.StartSelf(ctx, "stream-discard", limit, &args.Target)
		if err != nil {
			return nil, err
		}
		t.server = child
		t.received = func() (n int64, err error) {
			err = child.Call("received", nil, &n)
			return n, err
		}
	}
	var err error
	if t.senders, err = process.StartSelf(ctx, "stream-senders", args, nil); err != nil {
		t.server.Stop()
		return nil, err
	}
	return t, nil
}

type ingestSeen struct {
	cpuPerReport, reportsPerSecond, reportsPerAck float64
}

// measure has reports sent, and waits until they are taken in.
func (t *taker) measure(ctx context.Context, load Load) (ingestSeen, error) {
	before, err := t.server.CPU()
	if err != nil {
		return ingestSeen{}, err
	}
	var tally Tally
	if load.Rate > 0 {
		err = t.senders.Call("paced", PacedArgs{Milliseconds: load.Milliseconds, Rate: load.Rate}, &tally)
	} else {
		err = t.senders.Call("busy", BusyArgs{Milliseconds: load.Milliseconds}, &tally)
	}
	if err != nil {
		return ingestSeen{}, err
	}
	t.before += tally.Sent
	if err := t.await(ctx); err != nil {
		return ingestSeen{}, err
	}
	after, err := t.server.CPU()
	if err != nil {
		return ingestSeen{}, err
	}
	seen := ingestSeen{
		cpuPerReport:     float64(after-before) / float64(time.Microsecond) / float64(tally.Sent),
		reportsPerSecond: float64(tally.Sent) / tally.Seconds,
	}
	if tally.Acks > 0 {
		seen.reportsPerAck = float64(tally.Sent) / float64(tally.Acks)
	}
	return seen, nil
}

// await waits until a server without acks has received all that was sent.
func (t *taker) await(ctx context.Context) error {
	if t.received == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, awaitTimeout)
	defer cancel()
	for {
		n, err := t.received()
		if err != nil || n >= t.before {
			return err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%d of %d reports were received: %w", n, t.before, ctx.Err())
		}
	}
}
