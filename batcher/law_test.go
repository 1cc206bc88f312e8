package batcher

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
)

// model drives a Batcher at random, and knows what must be true of it.
type model struct {
	t        *rapid.T
	b        *Batcher
	store    *fakeStore
	agents   []*modelAgent
	trackers []*fakeTracker
	// late is the last sequence of a report of an older session: no order
	// comes twice.
	late int64
	// values is how many different ones a key has.
	values int64
}

// modelAgent is an agent and what it may rely on.
type modelAgent struct {
	id       agent.ID
	epoch    int64
	sequence int64
	tracker  *fakeTracker
	// newest is the newest value of each key that was taken in since the agent
	// was last removed.
	newest map[string]agent.Metadata
	// sent is that part of it which the current process sent.
	sent map[string]agent.Metadata
	// rejected is the newest value of each key that the database refused.
	rejected map[string]agent.Order
}

func newModel(t *rapid.T) *model {
	m := &model{t: t, store: &fakeStore{}, late: 1000}
	batchSize := rapid.IntRange(1, 8).Draw(t, "batch size")
	m.b = newBatcher(t, m.store, Options{
		BatchSize: batchSize, MaxPending: batchSize + rapid.IntRange(0, 8).Draw(t, "room"),
		MaxPendingPerAgent: rapid.IntRange(1, 5).Draw(t, "share of an agent"),
		MaxPendingPerOwner: rapid.IntRange(1, 8).Draw(t, "share of an owner"),
		TouchInterval:      rapid.SampledFrom([]time.Duration{0, time.Hour}).Draw(t, "touch interval"),
	})
	// Few values make many reports unchanged, many show which one is stored.
	m.values = rapid.SampledFrom([]int64{1, 2, 1 << 30}).Draw(t, "values")
	for n := range byte(3) {
		m.agents = append(m.agents, &modelAgent{
			id: id(n), epoch: 10, newest: map[string]agent.Metadata{}, sent: map[string]agent.Metadata{}, rejected: map[string]agent.Order{},
		})
		m.restart(m.agents[n])
	}
	return m
}

// restart gives an agent a new process.
func (m *model) restart(a *modelAgent) {
	a.epoch++
	a.sequence = 0
	a.tracker = &fakeTracker{}
	clear(a.sent)
	m.trackers = append(m.trackers, a.tracker)
}

// act does one thing at random to one agent.
func (m *model) act() {
	a := m.agents[rapid.IntRange(0, len(m.agents)-1).Draw(m.t, "agent")]
	switch rapid.IntRange(0, 9).Draw(m.t, "action") {
	case 0:
		m.restart(a)
	case 1:
		a.epoch++ // reconnects
	case 2:
		for _, q := range m.b.pending.quarantine {
			q.until = time.Time{} // its time is over
		}
		m.b.Remove(a.id)
		m.store.mu.Lock()
		maps.DeleteFunc(m.store.rows, func(k rowKey, _ agent.Metadata) bool { return k.agent == a.id })
		m.store.mu.Unlock()
		clear(a.newest)
		clear(a.sent)
	case 3:
		m.late++
		m.add(a, a.epoch-rapid.Int64Range(1, 3).Draw(m.t, "epochs ago"), m.late, nil)
	case 4:
		a.epoch++ // a new session
		m.add(a, a.epoch, 0, nil)
	default:
		a.sequence++
		m.add(a, a.epoch, a.sequence, a.tracker)
	}
	m.check()
}

func (m *model) add(a *modelAgent, epoch, sequence int64, tracker *fakeTracker) {
	r := agent.MetadataReport{
		Agent: a.id, Order: agent.Order{Epoch: epoch, Sequence: sequence},
		Owner: rapid.SampledFrom([]agent.ID{{}, id(100), id(100), id(101)}).Draw(m.t, "owner"),
	}
	if tracker != nil {
		r.Tracker = tracker
	}
	for _, key := range rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "d", ""}), 0, 5).Draw(m.t, "keys") {
		r.Entries = append(r.Entries, agent.MetadataEntry{Key: key, Value: fmt.Sprint((epoch*100 + sequence*10 + int64(len(r.Entries))) % m.values)})
	}
	var refused []string
	lent, spoil := borrowed(r)
	for _, refusal := range m.b.Add(now, lent) {
		refused = append(refused, refusal.Names...)
	}
	spoil()
	for _, e := range r.Entries {
		if slices.Contains(refused, e.Key) {
			continue
		}
		value := agent.Metadata{Agent: a.id, Key: e.Key, Value: e.Value, CollectedAt: now, Order: r.Order}
		if old, ok := a.newest[e.Key]; ok && r.Order.Compare(old.Order) < 0 {
			continue
		}
		a.newest[e.Key] = value
		delete(a.sent, e.Key)
		if tracker != nil {
			a.sent[e.Key] = value
		}
	}
}

// flush lets the batcher write, with anything happening during the write and
// any outcome of it.
func (m *model) flush() {
	outcome := rapid.IntRange(0, 3).Draw(m.t, "outcome")
	rejectedKey := rapid.SampledFrom([]string{"a", "b"}).Draw(m.t, "rejected")
	m.store.rejects = func(r agent.Metadata) bool { return outcome >= 2 && r.Key == rejectedKey }
	calls := 0
	m.store.before = func(_ context.Context, rows []agent.Metadata) error {
		for range rapid.IntRange(0, 3).Draw(m.t, "meanwhile") {
			m.act()
		}
		calls++
		if outcome == 1 || outcome == 3 && calls > 2 {
			return errDown
		}
		if len(rows) == 1 && m.store.rejects(rows[0]) {
			a := m.agents[rows[0].Agent[15]]
			if rows[0].Order.Compare(a.rejected[rows[0].Key]) > 0 {
				a.rejected[rows[0].Key] = rows[0].Order
			}
		}
		return nil
	}
	err := m.b.flushWaiting(m.t.Context(), m.t.Context())
	if outcome == 0 || outcome == 2 {
		require.NoError(m.t, err)
	}
	m.check()
}

// check is what holds at any moment.
func (m *model) check() {
	requireLaw(m.t, m.b)
	for _, tracker := range m.trackers {
		require.Empty(m.t, tracker.wrong, "resolved without a pending ack")
	}
	for _, a := range m.agents {
		durable := a.sequence
		if pending := a.tracker.sequences(); len(pending) > 0 {
			durable = pending[0] - 1
		}
		for key, value := range a.sent {
			if value.Order.Sequence > durable || a.rejected[key].Compare(value.Order) >= 0 {
				continue
			}
			stored, ok := m.store.rows[rowKey{a.id, key}]
			require.True(m.t, ok && (stored.Order.Compare(value.Order) >= 0 || m.same(stored, value)),
				"agent %s key %s: sequence %d is acknowledged, %d is what counts, stored is %+v", a.id, key, durable, value.Order.Sequence, stored)
		}
	}
}

// same reports whether a stored value says the same in the same session.
func (m *model) same(stored, value agent.Metadata) bool {
	return m.b.Options().TouchInterval > 0 && stored.Order.Epoch == value.Order.Epoch && stored.Value == value.Value
}

// At any moment of any life the counts add up, and what is acknowledged is in the
// database. In the end each pending ack is resolved and the newest values are there.
func TestLaw(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			if rapid.IntRange(0, 3).Draw(t, "step") == 0 {
				m.flush()
			} else {
				m.act()
			}
		}
		m.store.before, m.store.rejects = nil, nil
		m.b.drain(t.Context())
		m.check()
		_, pending := m.b.counts()
		require.Zero(t, pending)
		require.Empty(t, m.b.pending.agents)
		for _, tracker := range m.trackers {
			require.Empty(t, tracker.sequences(), "each pending ack is resolved")
		}
		for _, a := range m.agents {
			for key, value := range a.newest {
				if a.rejected[key].Compare(value.Order) >= 0 {
					continue
				}
				stored := m.store.rows[rowKey{a.id, key}]
				if stored.Order.Compare(value.Order) <= 0 && !m.same(stored, value) { // else it is from before a removal
					require.Equal(t, value, stored)
				}
			}
		}
	})
}
