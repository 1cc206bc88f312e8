package targets

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/internal/backoff"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// learnedFor is how long a family that the service refused as its own is not sent.
	learnedFor = 10 * time.Minute
	// grantedIntervals is for how many intervals this bridge is granted a target: one
	// that was killed is replaced before its gauges expire.
	grantedIntervals = 3
	// maxGranted is the longest that the service grants a task for, maxTaskBytes the
	// longest name of one.
	maxGranted   = time.Hour
	maxTaskBytes = 128
	// taskTimeout bounds a call that acquires a target, or gives it back.
	taskTimeout = 5 * time.Second
	// finalTimeout bounds a push that says that a process is gone.
	finalTimeout = 5 * time.Second
)

// instance is one process of coderd.
type instance struct {
	id    [16]byte
	start float64
}

// target is an address that is scraped. Its goroutine owns it, but for what mu guards.
type target struct {
	*Targets
	// name is the host and port, for people, metrics and the identity.
	name    string
	scraper *scraper

	// current is the process that answered last, pushed whether the service took a
	// snapshot of it in from here.
	current instance
	pushed  bool
	// shared means that several processes answer by turns, so none has replaced another.
	shared bool
	// standby means that another bridge was granted the target.
	standby bool
	// learned are families that the service computes itself, until when they are left out.
	learned map[string]time.Time

	mu sync.Mutex
	// failure is why the newest scrape is not served; nil: it is. Guarded by mu.
	failure error
}

func newTarget(t *Targets, name string, s *scraper) *target {
	return &target{Targets: t, name: name, scraper: s, learned: make(map[string]time.Time)}
}

// run scrapes and pushes until ctx ends. If the target is removed then, its gauges go.
func (t *target) run(ctx context.Context, removed func() bool) {
	t.metrics.add(t.name)
	defer t.metrics.remove(t.name)
	defer t.scraper.close()
	defer t.setStandby(false)
	for {
		began := time.Now()
		t.setStandby(!t.acquire(ctx, min(grantedIntervals*t.opts.Interval, maxGranted)))
		if !t.standby {
			t.round(ctx, time.Now())
		}
		if !backoff.Sleep(ctx, t.opts.Interval-time.Since(began)) {
			break
		}
	}
	if t.standby {
		return
	}
	if removed() && t.pushed {
		t.sayGone(context.WithoutCancel(ctx), t.current)
	}
	t.acquire(context.WithoutCancel(ctx), 0)
}

// acquire has the service grant the target to this bridge alone for so long, or takes it
// back if that is 0. It returns false if another bridge has it. A service that does not
// answer grants it: each scrape counts once, whoever makes it.
func (t *target) acquire(ctx context.Context, d time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, taskTimeout)
	defer cancel()
	granted, err := t.tasks.AcquireTasks(ctx, t.holder, d, t.task())
	if err != nil {
		t.log.Debug("a target is scraped without being granted", "target", t.name, "error", err)
		return true
	}
	return len(granted) > 0
}

// task is the name of the target among the tasks of all bridges.
func (t *target) task() string {
	name := "scrape " + t.where()
	if len(name) <= maxTaskBytes {
		return name
	}
	return fmt.Sprintf("scrape %x", sha256.Sum256([]byte(name)))
}

// round makes one scrape and pushes it.
func (t *target) round(ctx context.Context, began time.Time) {
	o, err := t.scrapeAndPush(ctx, began)
	if ctx.Err() != nil && err != nil {
		return
	}
	t.metrics.scrapes.WithLabelValues(t.name, string(o)).Inc()
	t.mu.Lock()
	before := t.failure
	t.failure = err
	t.mu.Unlock()
	switch {
	case err == nil && before != nil:
		t.log.Info("coderd is scraped again", "target", t.name)
	case err != nil && (before == nil || before.Error() != err.Error()):
		t.log.Warn("coderd is not scraped", "target", t.name, "outcome", string(o), "error", err)
	}
}

func (t *target) scrapeAndPush(ctx context.Context, began time.Time) (outcome, error) {
	scraped, err := t.scraper.scrape(ctx, t.opts.MaxMessageBytes-requestOverhead, func(name, help string) string { return t.skip(name, help, began) })
	if err != nil {
		var failed *scrapeError
		errors.As(err, &failed)
		return failed.outcome, err
	}
	t.metrics.samples.WithLabelValues(t.name).Set(float64(scraped.samples))
	t.noteLeftOut(scraped.leftOut, scraped.reasons)
	t.follow(ctx, instance{t.identify(scraped.start), scraped.start})
	ctx, cancel := context.WithTimeout(ctx, t.opts.Interval)
	defer cancel()
	answer, err := (&push{hello: t.hello(t.current), families: scraped.families, scrapedAt: began}).send(ctx, t.service)
	// Aborted: another bridge pushes at this moment.
	aborted := status.Code(err) == codes.Aborted
	if err != nil && !aborted {
		return outcomePushFailed, fmt.Errorf("push to agentstatsd: %w", err)
	}
	if aborted || answer.GetSuperseded() {
		return outcomeSuperseded, nil
	}
	t.learn(answer, began)
	t.pushed = true
	t.metrics.scraped.WithLabelValues(t.name).Set(float64(began.UnixMilli()) / 1000)
	return outcomePushed, nil
}

func (t *target) setStandby(standby bool) {
	if standby == t.standby {
		return
	}
	t.standby = standby
	if standby {
		t.metrics.standby.Inc()
		t.log.Info("another bridge scrapes this coderd", "target", t.name)
		t.pushed = false
		t.mu.Lock()
		t.failure = nil
		t.mu.Unlock()
		return
	}
	t.metrics.standby.Dec()
}

// follow makes p the current process. The one before is gone, unless both answer by turns.
func (t *target) follow(ctx context.Context, p instance) {
	before := t.current
	t.current = p
	if before == (instance{}) || before.id == p.id {
		return
	}
	pushed := t.pushed
	t.pushed = false
	switch {
	case t.shared:
	case p.start < before.start:
		t.shared = true
		t.log.Warn("several coderds answer by turns: give the URL of each, or dns+http for all addresses of a name", "target", t.name)
	default:
		t.log.Info("coderd has started anew", "target", t.name)
		if pushed {
			t.sayGone(ctx, before)
		}
	}
}

// sayGone has the gauges of a process go at once. Its counters stay.
func (t *target) sayGone(ctx context.Context, p instance) {
	ctx, cancel := context.WithTimeout(ctx, finalTimeout)
	defer cancel()
	if _, err := (&push{hello: t.hello(p), scrapedAt: time.Now(), final: true}).send(ctx, t.service); err != nil {
		t.log.Info("gauges of a coderd that is gone are served until they expire", "target", t.name, "error", err)
	}
}

func (t *target) hello(p instance) *agentstatsv1.PushHello {
	return &agentstatsv1.PushHello{
		Replica: t.name[:min(len(t.name), maxReplicaBytes)], InstanceId: p.id[:], Interval: durationpb.New(t.opts.Interval),
		PassThrough: t.opts.PassThrough,
	}
}

// identify returns the id of the process of the target that started then. All bridges
// that have the same URLs find the same.
func (t *target) identify(start float64) (id [16]byte) {
	hash := sha256.New()
	_, _ = hash.Write([]byte("coderd that is scraped\n" + t.where() + "\n"))
	_, _ = hash.Write(binary.BigEndian.AppendUint64(nil, math.Float64bits(start)))
	copy(id[:], hash.Sum(nil))
	return id
}

// where is the name of the target to all bridges.
func (t *target) where() string {
	if isLoopback(t.name) {
		return t.name + " of " + t.opts.Host
	}
	return t.name
}

// isLoopback reports whether a host and port is one of the machine that asks.
func isLoopback(name string) bool {
	host, _, _ := net.SplitHostPort(name)
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || err == nil && addr.IsLoopback()
}

// skip returns why a family is not sent.
func (t *target) skip(name, help string, now time.Time) string {
	switch {
	case help == forwardedHelp && !t.opts.PassThrough:
		return reasonForwarded
	case now.Before(t.learned[name]):
		return reasonOwned
	}
	return ""
}

// learn takes in what the service refused.
func (t *target) learn(answer *agentstatsv1.PushMetricsResponse, now time.Time) {
	maps.DeleteFunc(t.learned, func(_ string, until time.Time) bool { return !now.Before(until) })
	var refused []leftOut
	reasons := make(map[string]int)
	for _, r := range answer.GetRefused() {
		refused = append(refused, leftOut{r.GetName(), r.GetReason(), r.GetMessage()})
		reasons[cmp.Or(r.GetReason(), "unknown")]++
		if r.GetReason() == reasonOwned && r.GetSeries() == 0 {
			t.learned[r.GetName()] = now.Add(learnedFor)
		}
	}
	t.noteLeftOut(refused, reasons)
}

// noteLeftOut counts and logs families that are left out, those that are bound to be at
// debug level.
func (t *target) noteLeftOut(some []leftOut, reasons map[string]int) {
	said := 0
	for reason, n := range reasons {
		t.metrics.leftOut.WithLabelValues(reason).Add(float64(n))
		if reason != reasonForwarded && reason != reasonOwned {
			said += n
		}
	}
	var first leftOut
	for _, l := range some {
		if l.reason == reasonForwarded || l.reason == reasonOwned {
			t.log.Debug("a family is not pushed, as the service has it itself", "target", t.name, "family", l.name, "reason", l.reason)
			continue
		}
		if first == (leftOut{}) {
			first = l
		}
	}
	if said > 0 {
		t.leftOutLog.Log(context.Background(), t.log, slog.LevelWarn, "families", said, "families of coderd are left out",
			"target", t.name, "first", first.name, "reason", first.reason, "error", first.message)
	}
}
