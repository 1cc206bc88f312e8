package simulate

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	"storj.io/drpc"

	"github.com/coder/agentstatsd/internal/backoff"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
	"github.com/coder/agentstatsd/simulate/coderagent"
)

// callTimeout bounds each call of an agent, and its handshake.
const callTimeout = time.Minute

// errBroken is of a connection that the other side ended.
var errBroken = errors.New("the other side ended it")

// coderBackoff is about that of Coder's agents.
var coderBackoff = backoff.Backoff{Min: 100 * time.Millisecond, Max: 10 * time.Second}

// coderAgent is an agent that speaks Coder's own protocol. One goroutine runs it.
//
//	created --first connection--> starting --some seconds--> ready or start_error --end--> shutting_down --> off
type coderAgent struct {
	fleet     *coderFleet
	token     string
	random    *rand.Rand
	generator *generator
	node      int64

	manifest coderagent.Manifest
	state    agentstatsv1.Lifecycle_State
	healthy  bool
	values   int64 // given to each key of metadata
	started  time.Time
}

// coderSession is one of its connections.
type coderSession struct {
	*coderagent.Session
	network  drpc.Stream
	interval time.Duration
	reading  sync.WaitGroup
	cancel   context.CancelFunc
}

func (s *coderSession) close() {
	s.cancel()
	_ = s.Close()
	s.reading.Wait()
}

// run has the agent live until ctx ends. It connects after some time.
func (a *coderAgent) run(ctx context.Context, after time.Duration) {
	if !backoff.Sleep(ctx, after) {
		return
	}
	f := a.fleet
	for failures := 0; ctx.Err() == nil; {
		s, err := a.connect(ctx)
		if err != nil {
			failures++
			if ctx.Err() == nil {
				f.failed(&f.failures, "an agent cannot connect", err)
			}
			if !coderBackoff.Wait(ctx, failures) {
				return
			}
			continue
		}
		failures = 0
		f.connected.Add(1)
		if err := a.live(ctx, s); err != nil {
			f.failed(&f.failures, "the connection of an agent broke", err)
		}
		s.close()
		f.connected.Add(-1)
	}
}

// connect connects, and makes the calls that agents begin with.
func (a *coderAgent) connect(ctx context.Context) (*coderSession, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	session, err := coderagent.Dial(ctx, a.fleet.anyURL(a.random), a.token, coderagent.DialOptions{Role: "agent", TLS: a.fleet.opts.TLS})
	if err != nil {
		return nil, err
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	s := &coderSession{Session: session, cancel: end, interval: a.fleet.opts.ReportInterval}
	if err := a.begin(ctx, life, s); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// begin makes the first calls. Streams live as long as life.
func (a *coderAgent) begin(ctx, life context.Context, s *coderSession) error {
	answer, err := s.Call(ctx, coderagent.GetManifest, nil)
	if err != nil {
		return fmt.Errorf("get the manifest: %w", err)
	}
	if a.manifest, err = coderagent.ParseManifest(answer); err != nil {
		return err
	}
	// The first one has no report: it asks for the interval.
	if answer, err = s.Call(ctx, coderagent.UpdateStats, nil); err != nil {
		return fmt.Errorf("ask for the report interval: %w", err)
	}
	if s.interval == 0 {
		if s.interval, err = coderagent.ReportInterval(answer); err != nil {
			return err
		}
	}
	if s.interval <= 0 {
		s.interval = defaultCoderReportInterval
	}
	if s.network, err = s.read(life, coderagent.Coordinate); err != nil {
		return err
	}
	regions, err := s.read(life, coderagent.StreamDERPMaps)
	if err != nil {
		return err
	}
	if err := regions.MsgSend(&coderagent.Message{}, coderagent.Encoding{}); err != nil {
		return fmt.Errorf("ask for DERP maps: %w", err)
	}
	a.fleet.sessions.Add(1)
	first := a.started.IsZero()
	if first {
		a.fleet.connects.Add(1)
		a.started = time.Now()
	}
	// After a reconnect it has no latencies, until it measures them again.
	return a.setNetwork(s, first)
}

// read opens a stream, and reads what coderd says there until it ends.
func (s *coderSession) read(life context.Context, call string) (drpc.Stream, error) {
	stream, err := s.Stream(life, call)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", call, err)
	}
	s.reading.Go(func() {
		for stream.MsgRecv(&coderagent.Message{}, coderagent.Encoding{}) == nil {
		}
	})
	return stream, nil
}

// appointment is what an agent does next at a time.
type appointment struct {
	at time.Time
	// do returns the time until it is to be done again.
	do func(context.Context, *coderSession) (time.Duration, error)
}

// live makes the calls of one connection until that ends, or ctx does. It returns why the
// connection broke; nil: it was the agent that ended it.
func (a *coderAgent) live(ctx context.Context, s *coderSession) error {
	now := time.Now()
	within := func(d time.Duration) time.Time { return now.Add(time.Duration(a.random.Float64() * float64(d))) }
	diary := []appointment{
		{now, a.liveOn},
		{within(s.interval), a.report},
		{within(a.fleet.opts.MetadataInterval), a.reportMetadata},
	}
	var churn <-chan time.Time
	if mean := a.fleet.opts.Churn; mean > 0 {
		timer := time.NewTimer(time.Duration(a.random.ExpFloat64() * float64(mean)))
		defer timer.Stop()
		churn = timer.C
	}
	for {
		next := &diary[0]
		for i := range diary {
			if diary[i].at.Before(next.at) {
				next = &diary[i]
			}
		}
		timer := time.NewTimer(time.Until(next.at))
		select {
		case <-ctx.Done():
			timer.Stop()
			return a.leave(s)
		case <-s.Done():
			timer.Stop()
			return errBroken
		case <-churn:
			timer.Stop()
			return nil
		case <-timer.C:
		}
		// What has begun ends.
		calling, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		again, err := next.do(calling, s)
		cancel()
		if err != nil {
			return err
		}
		next.at = time.Now().Add(again)
	}
}

// call makes a call. A refusal is counted, and is no error.
func (a *coderAgent) call(ctx context.Context, s *coderSession, name string, request []byte) (accepted bool, err error) {
	_, err = s.Call(ctx, name, request)
	if err == nil {
		return true, nil
	}
	select {
	case <-s.Done():
		return false, err
	default:
	}
	if ctx.Err() != nil {
		return false, err
	}
	a.fleet.failed(&a.fleet.refused, "coderd refused a call", err)
	return false, nil
}

// report sends what happened since the last report. What is under way as the connection
// breaks is lost, as of Coder's agents.
func (a *coderAgent) report(ctx context.Context, s *coderSession) (time.Duration, error) {
	f := a.fleet
	stats := a.generator.next()
	request, err := coderagent.StatsRequest(stats)
	if err != nil {
		return 0, err
	}
	f.reports.Add(1)
	f.samples.Add(int64(len(stats.GetMetrics())))
	began := time.Now()
	accepted, err := a.call(ctx, s, coderagent.UpdateStats, request)
	if accepted {
		f.reportsAcked.Add(1)
		f.acks.add(time.Since(began))
	}
	return s.interval, err
}

// reportMetadata sends a new value of each declared key.
func (a *coderAgent) reportMetadata(ctx context.Context, s *coderSession) (time.Duration, error) {
	f := a.fleet
	if len(a.manifest.MetadataKeys) == 0 {
		return f.opts.MetadataInterval, nil
	}
	a.values++
	entries := make([]*agentstatsv1.Metadata, len(a.manifest.MetadataKeys))
	for i, key := range a.manifest.MetadataKeys {
		value, text := metadataValue(a.random, i, a.values, time.Since(a.started))
		entries[i] = &agentstatsv1.Metadata{Key: key, Result: &agentstatsv1.Metadata_Result{CollectedAt: timestamppb.Now(), Value: value, Error: text}}
	}
	request, err := coderagent.MetadataRequest(entries)
	if err != nil {
		return 0, err
	}
	f.values.Add(int64(len(entries)))
	accepted, err := a.call(ctx, s, coderagent.BatchUpdateMetadata, request)
	if accepted {
		f.stored.Add(int64(len(entries)))
	}
	return f.opts.MetadataInterval, err
}

// callState makes a call that says a state.
func (a *coderAgent) callState(ctx context.Context, s *coderSession, name string, request []byte) error {
	a.fleet.others.Add(1)
	accepted, err := a.call(ctx, s, name, request)
	if accepted {
		a.fleet.othersAcked.Add(1)
	}
	return err
}

// liveOn moves the agent's life on.
func (a *coderAgent) liveOn(ctx context.Context, s *coderSession) (time.Duration, error) {
	seconds := func(least, more float64) time.Duration {
		return time.Duration((least + more*a.random.Float64()) * float64(time.Second))
	}
	switch a.state {
	case agentstatsv1.Lifecycle_STATE_UNSPECIFIED:
		return seconds(1, 3), a.setLifecycle(ctx, s, agentstatsv1.Lifecycle_STATE_STARTING)
	case agentstatsv1.Lifecycle_STATE_STARTING:
		state := agentstatsv1.Lifecycle_STATE_READY
		if a.random.IntN(20) == 0 {
			state = agentstatsv1.Lifecycle_STATE_START_ERROR
		}
		if err := a.setLifecycle(ctx, s, state); err != nil {
			return 0, err
		}
		return seconds(10, 20), a.setApps(ctx, s, true)
	}
	if !a.fleet.opts.Steady {
		switch a.random.IntN(4) {
		case 0:
			return seconds(10, 20), a.setApps(ctx, s, !a.healthy)
		case 1:
			return seconds(10, 20), a.setNetwork(s, true)
		}
	}
	return seconds(10, 20), nil
}

// setLifecycle says a state. The agent has it even if the connection breaks.
func (a *coderAgent) setLifecycle(ctx context.Context, s *coderSession, state agentstatsv1.Lifecycle_State) error {
	request, err := coderagent.LifecycleRequest(&agentstatsv1.Lifecycle{State: state, ChangedAt: timestamppb.Now()})
	if err != nil {
		return err
	}
	if err := a.callState(ctx, s, coderagent.UpdateLifecycle, request); err != nil {
		return err
	}
	a.state = state
	return nil
}

func (a *coderAgent) setApps(ctx context.Context, s *coderSession, healthy bool) error {
	a.healthy = healthy
	if len(a.manifest.Apps) == 0 {
		return nil
	}
	health := agentstatsv1.AppHealth_APP_HEALTH_HEALTHY
	if !healthy {
		health = agentstatsv1.AppHealth_APP_HEALTH_UNHEALTHY
	}
	return a.callState(ctx, s, coderagent.BatchUpdateAppHealths, coderagent.AppHealthsRequest(a.manifest.Apps, health))
}

// setNetwork says the agent's node.
func (a *coderAgent) setNetwork(s *coderSession, measured bool) error {
	n := network(a.random, uint64(a.node))
	node := coderagent.Node{ID: a.node, Preferred: int32(n.GetPreferredRegionId())}
	if measured {
		node.Latencies = make(map[string]float64)
		for _, r := range n.GetRegions() {
			if r.GetLatency() != nil {
				// A whole number of nanoseconds, as a Duration has.
				node.Latencies[fmt.Sprintf("%d-v4", r.GetId())] = math.Round(r.GetLatency().AsDuration().Seconds()*1e9) / 1e9
			}
		}
	}
	if err := s.network.MsgSend(&coderagent.Message{Bytes: node.UpdateSelf()}, coderagent.Encoding{}); err != nil {
		return fmt.Errorf("coordinate: %w", err)
	}
	return nil
}

// leave ends the agent: its connection, and unless the agent is kept its life.
func (a *coderAgent) leave(s *coderSession) error {
	if a.fleet.opts.Keep {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	for _, state := range []agentstatsv1.Lifecycle_State{agentstatsv1.Lifecycle_STATE_SHUTTING_DOWN, agentstatsv1.Lifecycle_STATE_OFF} {
		if err := a.setLifecycle(ctx, s, state); err != nil {
			return err
		}
	}
	if err := s.network.MsgSend(&coderagent.Message{Bytes: coderagent.Disconnect()}, coderagent.Encoding{}); err != nil {
		return fmt.Errorf("coordinate: %w", err)
	}
	return nil
}
