package batcher

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/coder/agentstatsd/agent"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

var (
	errDown = errors.New("database is down")
	quiet   = slog.New(slog.DiscardHandler)
)

type rowKey struct {
	agent agent.ID
	key   string
}

// fakeStore is for what a real database does not do on demand.
type fakeStore struct {
	mu    sync.Mutex
	rows  map[rowKey]agent.Metadata
	calls []storeCall
	// before is called first, with mu unlocked; its error is returned.
	before func(ctx context.Context, rows []agent.Metadata) error
	// rejects are the rows that the database refuses.
	rejects func(agent.Metadata) bool
}

type storeCall struct {
	at   time.Time
	rows []agent.Metadata
}

func (s *fakeStore) UpsertMetadata(ctx context.Context, rows []agent.Metadata) ([]agent.ID, []agent.StoredEpoch, error) {
	s.mu.Lock()
	s.calls = append(s.calls, storeCall{time.Now(), slices.Clone(rows)})
	before := s.before
	s.mu.Unlock()
	if before != nil {
		if err := before(ctx, rows); err != nil {
			return nil, nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rejects != nil && slices.ContainsFunc(rows, s.rejects) {
		return nil, nil, errors.Join(errors.New("constraint failed"), agent.ErrRejected)
	}
	if s.rows == nil {
		s.rows = make(map[rowKey]agent.Metadata)
	}
	var changed []agent.ID
	var newer []agent.StoredEpoch
	for _, r := range rows {
		k := rowKey{r.Agent, r.Key}
		if old, ok := s.rows[k]; !ok || r.Order.Compare(old.Order) > 0 {
			s.rows[k] = r
			changed = append(changed, r.Agent)
		} else if old.Order.Epoch > r.Order.Epoch {
			newer = append(newer, agent.StoredEpoch{Agent: r.Agent, Key: r.Key, Epoch: old.Order.Epoch})
		}
	}
	return changed, newer, nil
}

// fakePublisher keeps what was published.
type fakePublisher struct {
	mu     sync.Mutex
	agents [][]agent.ID
	err    error
}

func (p *fakePublisher) PublishMetadata(_ context.Context, agents []agent.ID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.agents = append(p.agents, slices.Clone(agents))
	return p.err
}

// fakeTracker checks that each pending ack is resolved once.
type fakeTracker struct {
	mu       sync.Mutex
	pending  map[int64]int
	resolved []agent.Resolution
	calls    int
	wrong    []agent.Resolution // resolved without being pending
	// superseded has the epochs that superseded its own.
	superseded []int64
}

func (f *fakeTracker) Supersede(epoch int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.superseded = append(f.superseded, epoch)
}

func (f *fakeTracker) AddPending(sequence int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pending == nil {
		f.pending = make(map[int64]int)
	}
	f.pending[sequence]++
}

func (f *fakeTracker) Resolve(resolved []agent.Resolution) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	f.resolved = append(f.resolved, resolved...)
	for _, s := range resolved {
		switch f.pending[s.Sequence] {
		case 0:
			f.wrong = append(f.wrong, s)
		case 1:
			delete(f.pending, s.Sequence)
		default:
			f.pending[s.Sequence]--
		}
	}
}

// sequences returns those that are pending, each as often as it is.
func (f *fakeTracker) sequences() []int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []int64
	for _, s := range slices.Sorted(maps.Keys(f.pending)) {
		all = append(all, slices.Repeat([]int64{s}, f.pending[s])...)
	}
	return all
}

func newBatcher(t require.TestingT, store Store, opts Options) *Batcher {
	b, err := New(store, &fakePublisher{}, opts, prometheus.NewRegistry(), quiet)
	require.NoError(t, err)
	return b
}

func id(n byte) agent.ID { return agent.ID{0: 0xa, 15: n} }

// report makes a report of entries written as "key=value".
func report(a agent.ID, epoch, sequence int64, tracker agent.Tracker, entries ...string) agent.MetadataReport {
	r := agent.MetadataReport{Agent: a, Order: agent.Order{Epoch: epoch, Sequence: sequence}, Tracker: tracker}
	for _, text := range entries {
		key, value, _ := strings.Cut(text, "=")
		r.Entries = append(r.Entries, agent.MetadataEntry{Key: key, Value: value})
	}
	return r
}

// borrowed returns r with its texts in memory that spoil overwrites, as do the
// buffers of a stream. It clears the entries too.
func borrowed(r agent.MetadataReport) (_ agent.MetadataReport, spoil func()) {
	var memory [][]byte
	borrow := func(s string) string {
		b := []byte(s)
		memory = append(memory, b)
		return unsafe.String(unsafe.SliceData(b), len(b))
	}
	entries := make([]agent.MetadataEntry, len(r.Entries))
	for i, e := range r.Entries {
		entries[i] = agent.MetadataEntry{Key: borrow(e.Key), Value: borrow(e.Value), Error: borrow(e.Error)}
	}
	r.Entries = entries
	return r, func() {
		clear(entries)
		for _, b := range memory {
			for i := range b {
				b[i] = '#'
			}
		}
	}
}

// texts writes rows as "key=value".
func texts(rows []agent.Metadata) []string {
	var out []string
	for _, r := range rows {
		out = append(out, r.Key+"="+r.Value)
	}
	return out
}

// requireLaw checks the sums, and that the entries are linked as they are
// counted.
func requireLaw(t require.TestingT, b *Batcher) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.pending
	dropped := int64(0)
	for _, n := range p.ledger.dropped {
		dropped += n
	}
	require.Equal(t, p.ledger.received,
		p.ledger.flushed+p.ledger.coalesced+p.ledger.unchanged+dropped+int64(p.len()), "%+v, pending %d", p.ledger, p.len())
	queued, writing, keys := 0, 0, 0
	owners := make(map[agent.ID]int)
	walk := func(q *queue, of *quarantined) {
		n := 0
		for e := q.head.next; e != &q.head; e = e.next {
			n++
			require.True(t, e.waiting)
			require.Same(t, e, e.agent.keys[e.value.Key])
			require.Same(t, e.agent, p.agents[e.value.Agent])
			require.Same(t, e, e.next.prev)
			require.Same(t, of, e.agent.quarantined)
		}
		require.Equal(t, q.n, n)
		queued += n
	}
	walk(&p.queue, nil)
	for _, q := range p.quarantine {
		walk(&q.queue, q)
	}
	for _, a := range p.agents {
		require.NotEmpty(t, a.keys)
		require.Same(t, p.quarantine[a.id], a.quarantined)
		require.LessOrEqual(t, len(a.keys), p.limits.agent)
		if a.owner != (agent.ID{}) {
			owners[a.owner] += len(a.keys)
		}
		for _, e := range a.keys {
			keys++
			require.True(t, e.waiting || e.writing)
			if e.writing {
				writing++
			}
		}
	}
	for _, e := range p.spareEntries {
		require.Equal(t, entry{}, *e)
	}
	for _, a := range p.spareAgents {
		require.Empty(t, a.keys)
		require.Zero(t, a.slot)
		require.NotSame(t, a, p.agents[a.id])
	}
	require.Equal(t, p.waiting, queued)
	for _, g := range []generation{p.stored.newest, p.stored.before} {
		values := 0
		for id, a := range g.agents {
			values += len(a.values)
			require.True(t, p.stored.newest.agents[id] == nil || p.stored.before.agents[id] == nil)
		}
		require.Equal(t, g.values, values)
	}
	for owner, n := range owners {
		require.LessOrEqual(t, n, p.owners[owner], "those of removed agents are counted while they are written")
	}
	if p.writing == 0 {
		require.Equal(t, owners, p.owners)
	}
	require.LessOrEqual(t, writing, p.writing, "entries of removed agents are written too")
	require.LessOrEqual(t, p.len(), p.limits.all+batchGrowth*b.opts.Load().BatchSize)
}

// counts returns the ledger and how many entries are pending.
func (b *Batcher) counts() (ledger, int) {
	s := b.snapshot()
	return s.ledger, s.pending
}
