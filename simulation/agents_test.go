package simulation

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
)

// The parts of what an agent says that have values. Those of metadata keys begin
// with meta, those of apps with health.
const (
	meta      = "meta:"
	health    = "health:"
	lifecycle = "lifecycle"
	network   = "network"
)

// value is one value of a part. Index is its place among all that is said in a
// run: a higher one is newer.
type value struct {
	index int
	text  string
}

// reportInterval is the time between two reports of an agent.
const reportInterval = 30 * time.Second

// simAgent is one registered agent, or one that may be, and what it said over all
// of its processes.
type simAgent struct {
	number int
	reg    agent.Registration
	// said are the values of each part, the oldest first.
	said map[string][]value
	// acked is the newest value of each part that was acked as durable, which what
	// is read must not be older than.
	acked map[string]int
	// started is the newest lifecycle that began a start and was acked itself.
	started int
	// void is the newest index said when the agent was last removed or made known:
	// what was said before may be gone.
	void int
	// removals counts those that were committed.
	removals int
	client   *client
	// reports counts those that watchers receive, reported has them. What its processes
	// had not got acked when they ended is mayBeLost.
	reports             int
	reported, mayBeLost reported
	// clients counts the processes.
	clients int
	// opened is when its last two sessions did, the newer one last.
	opened [2]time.Time
}

// client is one process of an agent, as the SDK behaves.
type client struct {
	agent    *simAgent
	instance agent.Instance
	ordinal  int64
	epoch    int64
	sequence int64
	durable  int64 // the newest that it has an ack of
	// knows is what the process said of each part, the newest.
	knows map[string]value
	// sent are the requests that are not known to be durable, the oldest first.
	sent []request
	// asked has the parts of all requests, by sequence.
	asked map[int64][]string
	// inFlight are the reports that it keeps until they are acked, unsent what merges.
	inFlight []sentReport
	unsent   reported
	factor   float64 // of its report interval, as it was sent last

	session  *fleet.Session // nil: not connected
	on       *process
	removals int       // of the agent, when the session opened
	reported time.Time // when, on this session; zero: it did not
	retryAt  time.Time
}

// request is what was sent under one sequence.
type request struct {
	sequence int64
	values   map[string]value
}

// zombie is a session whose agent is gone, which its replica does not know.
type zombie struct {
	session  *fleet.Session
	on       *process
	agent    *simAgent
	removals int
}

// recordTime is longer than replicas take to write and read the record of a session: half
// a second to write it, two seconds between two reads.
const recordTime = 3 * time.Second

// connect opens a session on p, and says again what has to be. In a calm run the agent
// waits until all know its session before the last one. A session knows the last one and
// those that are recorded, no others: see fleet/outdated.go.
func (w *world) connect(c *client, p *process) {
	a := c.agent
	if at := a.opened[0].Add(recordTime); w.calm && time.Now().Before(at) {
		c.retryAt = at
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if _, err := p.fleet.Authenticate(ctx, token(a.number)); err != nil {
		w.log("%s does not get into %s: %v", c, p.name, err)
		c.retryAt = time.Now().Add(w.within(time.Second, 3*time.Second))
		return
	}
	c.ordinal++
	w.drainChanges()
	removals := a.removals
	s, err := p.fleet.Connect(ctx, a.reg.ID, fleet.Hello{
		Instance: c.instance, Ordinal: c.ordinal, Epoch: c.epoch, Durable: c.durable,
	})
	if err != nil {
		w.log("%s does not connect to %s: %v", c, p.name, err)
		c.retryAt = time.Now().Add(w.within(time.Second, 3*time.Second))
		return
	}
	resume := s.Resume()
	w.log("%s connects to %s: epoch %d, resume %d/%d", c, p.name, s.Info().Epoch-w.began.UnixNano(), resume.Received, resume.Durable)
	a.opened = [2]time.Time{a.opened[1], time.Now()}
	c.session, c.on, c.removals, c.epoch, c.reported = s, p, removals, s.Info().Epoch, time.Time{}
	if s.Info().Unknown {
		delete(p.counted, a.reg.ID)
	}
	w.receiveSettings(c)
	w.received(c, resume.Received)
	w.acked(c, resume.Durable)
	w.resend(c)
	again := make(map[string]value)
	for part, v := range c.knows {
		if !strings.HasPrefix(part, meta) {
			again[part] = v
		}
	}
	for _, r := range c.sent {
		for part, v := range r.values {
			if known := c.knows[part]; known.index == v.index {
				again[part] = v
			}
		}
	}
	c.sent = nil
	w.poll(c)
	w.report(c)
	w.send(c, again)
}

// disconnect ends the stream; its replica may not notice.
func (w *world) disconnect(c *client, noticed bool, end fleet.End) {
	if c.session == nil {
		return
	}
	w.log("%s leaves %s (%s, noticed: %v)", c, c.on.name, end, noticed)
	switch {
	case noticed:
		c.session.Close(end)
	case c.on.serving:
		w.zombies = append(w.zombies, zombie{c.session, c.on, c.agent, c.removals})
	}
	c.session, c.on = nil, nil
	c.retryAt = time.Now().Add(w.within(0, 2*time.Second))
}

// say makes new values of parts of the agent.
func (w *world) say(c *client, parts ...string) map[string]value {
	values := make(map[string]value, len(parts))
	for _, part := range parts {
		w.index++
		v := value{index: w.index, text: w.newText(c, part)}
		values[part] = v
		c.knows[part] = v
		c.agent.said[part] = append(c.agent.said[part], v)
	}
	return values
}

// newText returns the value as it is read back.
func (w *world) newText(c *client, part string) string {
	last := c.knows[part].text
	switch {
	case strings.HasPrefix(part, meta):
		if last != "" && w.random.IntN(4) == 0 {
			return last // unchanged
		}
		if said := c.agent.said[part]; len(said) > 1 && w.random.IntN(6) == 0 {
			return said[len(said)-2].text // as it was before
		}
		return fmt.Sprintf("v%d", w.index)
	case strings.HasPrefix(part, health):
		healths := []agent.AppHealth{agent.AppHealthHealthy, agent.AppHealthUnhealthy, agent.AppHealthInitializing}
		return string(healths[w.index%len(healths)])
	case part == lifecycle:
		w.tick()
		state := agent.LifecycleStarting
		if strings.HasPrefix(last, string(agent.LifecycleStarting)) || w.random.IntN(3) == 0 {
			state = agent.LifecycleReady
		}
		return fmt.Sprintf("%s %d", state, time.Now().UnixNano())
	}
	return fmt.Sprint(w.index) // of the network
}

// send sends values in requests of their kinds, as far as the session lives.
func (w *world) send(c *client, values map[string]value) {
	var metadata, healths []string
	for _, part := range sortedParts(values) {
		switch {
		case strings.HasPrefix(part, meta):
			metadata = append(metadata, part)
		case strings.HasPrefix(part, health):
			healths = append(healths, part)
		default:
			w.request(c, values, part)
		}
	}
	if len(metadata) > 0 {
		w.request(c, values, metadata...)
	}
	if len(healths) > 0 {
		w.request(c, values, healths...)
	}
}

// request sends one request with these parts.
func (w *world) request(c *client, values map[string]value, parts ...string) {
	c.sequence++
	r := request{sequence: c.sequence, values: make(map[string]value, len(parts))}
	for _, part := range parts {
		r.values[part] = values[part]
	}
	c.sent = append(c.sent, r)
	c.asked[r.sequence] = parts
	if c.session == nil {
		return
	}
	w.drainChanges()
	err := c.session.Receive(time.Now(), r.sequence, func(q fleet.Request) { q.Refuse(w.take(c.on, q, &r)) })
	if err != nil {
		w.log("%s sends %v: %v", c, r, err)
		w.ended(c)
		return
	}
	w.log("%s sends %v", c, r)
}

// take takes a request in as agentapi does.
func (w *world) take(p *process, q fleet.Request, r *request) (refused []agent.Refusal) {
	var entries []agent.MetadataEntry
	apps := make(map[agent.ID]agent.AppHealth)
	for _, part := range sortedParts(r.values) {
		text := r.values[part].text
		switch {
		case strings.HasPrefix(part, meta):
			entries = append(entries, agent.MetadataEntry{Key: strings.TrimPrefix(part, meta), Value: text})
		case strings.HasPrefix(part, health):
			apps[appID(part)] = agent.AppHealth(text)
		case part == lifecycle:
			q.SetLifecycle(parseLifecycle(text), 0)
		case part == network:
			var node uint64
			_, _ = fmt.Sscan(text, &node)
			q.SetNetwork(agent.Network{NodeID: node}, 0)
		}
	}
	if len(apps) > 0 {
		refused = append(refused, q.SetAppHealth(apps, nil)...)
	}
	if len(entries) == 0 {
		return refused
	}
	entries, undeclared := q.AdmitMetadata(entries)
	refused = append(refused, undeclared...)
	return append(refused, p.pending.Add(q.Now(), agent.MetadataReport{
		Agent: q.Agent(), Incarnation: q.Incarnation(), Order: q.Order(), Entries: entries, Tracker: q.Tracker(),
	})...)
}

// report sends stats, which begin a session.
func (w *world) report(c *client) {
	if c.session == nil {
		return
	}
	if err := w.sendReport(c, w.newReport(c), false); err != nil {
		w.ended(c)
		return
	}
	c.reported = time.Now()
}

// ended notes that the service ended the session.
func (w *world) ended(c *client) {
	w.log("%s: its session on %s was ended (%s)", c, c.on.name, c.session.End())
	c.session, c.on = nil, nil
	c.retryAt = time.Now().Add(w.within(0, time.Second))
}

// poll reads what the service sends the agent.
func (w *world) poll(c *client) {
	if c.session == nil {
		return
	}
	select {
	case <-c.session.Done():
		w.ended(c)
		return
	default:
	}
	w.receiveAck(c)
	switch {
	case c.session.Aged():
		w.disconnect(c, true, fleet.EndDisconnect)
	case time.Since(c.reported) >= time.Duration(c.factor*float64(reportInterval)):
		w.report(c)
	}
}

// receiveAck has the agent receive what its session has for it: refusals, then the ack
// that covers them.
func (w *world) receiveAck(c *client) {
	progress, refusals, ok := c.session.NextAck()
	if !ok {
		return
	}
	for i := range refusals {
		w.refused(c, &refusals[i])
	}
	w.receiveSettings(c)
	w.received(c, progress.Received)
	w.acked(c, progress.Durable)
}

// refused takes in a refusal: the values that it is about are not acked. Without
// all their names it is about every value of the request. Newer values of a key
// ride on its oldest request, so they are refused with it.
func (w *world) refused(c *client, f *fleet.Refusal) {
	w.log("%s: refused of requests %d to %d: %s %v (%d)", c, f.First, f.Sequence, f.Reason, f.Names, f.Count)
	first := f.Sequence
	if f.First != 0 {
		first = f.First
	}
	parts := make(map[string]bool)
	for _, name := range f.Names {
		parts[meta+name] = true
	}
	if f.Count > len(f.Names) {
		for sequence := first; sequence <= f.Sequence; sequence++ {
			for _, part := range c.asked[sequence] {
				parts[part] = true
			}
		}
	}
	for _, r := range c.sent {
		for part := range r.values {
			if parts[part] && r.sequence >= first {
				w.refusals[refusal{c, part, r.sequence}] = struct{}{}
			}
		}
	}
}

// refusal is of a value that a client knows to be refused.
type refusal struct {
	client   *client
	part     string
	sequence int64
}

// acked takes in that all up to a sequence is durable.
func (w *world) acked(c *client, durable int64) {
	c.durable = max(c.durable, durable)
	for len(c.sent) > 0 && c.sent[0].sequence <= durable {
		r := c.sent[0]
		c.sent = c.sent[1:]
		for part, v := range r.values {
			if _, refused := w.refusals[refusal{c, part, r.sequence}]; refused || v.index <= c.agent.void {
				continue
			}
			c.agent.acked[part] = max(c.agent.acked[part], v.index)
			if part == lifecycle && isStart(v) {
				c.agent.started = max(c.agent.started, v.index)
			}
		}
		w.log("%s: acked %v", c, r)
	}
}

// isStart reports whether a lifecycle begins a start.
func isStart(v value) bool { return strings.HasPrefix(v.text, string(agent.LifecycleStarting)) }

func (c *client) String() string { return fmt.Sprintf("agent %d.%d", c.agent.number, c.instance[0]) }

// statsReport is a report of stats with one sample.
type statsReport struct{}

func (statsReport) Stats() agent.Stats {
	return agent.Stats{RxBytes: 1, TxBytes: 1, ConnectionCount: 1}
}
func (statsReport) Len() int                                              { return 1 }
func (statsReport) Match(int, *agent.SampleEncoding) (v float64, ok bool) { return 0, false }
func (statsReport) Encoding(int) agent.SampleEncoding                     { return agent.SampleEncoding{} }
func (statsReport) Sample(int) *agent.Sample {
	return &agent.Sample{Name: "app_requests", Type: agent.Gauge, Value: 1}
}
