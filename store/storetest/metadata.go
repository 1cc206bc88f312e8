package storetest

import (
	"bytes"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
)

// The longest key that is accepted can be stored, of text that does not compress,
// beside others that differ in their last byte only.
func testMetadataLongestKey(t *testing.T, s Store) {
	register(t, s, id(1))
	random := rand.New(rand.NewPCG(1, 2))
	key := make([]rune, 0, agent.MaxMetadataKeyBytes/4)
	for range agent.MaxMetadataKeyBytes / 4 {
		key = append(key, 0x10000+random.Int32N(0x100000)) // four bytes each
	}
	longest := string(key)
	require.Len(t, longest, agent.MaxMetadataKeyBytes)
	rows := []agent.Metadata{row(id(1), longest, "v", 1, 1)}
	for n := range 100 {
		rows = append(rows, row(id(1), longest[:len(longest)-4]+fmt.Sprintf("%04d", n), "v", 1, 1))
	}
	changed, _, err := s.UpsertMetadata(t.Context(), rows)
	require.NoError(t, err)
	require.Len(t, changed, len(rows))
	found, _, err := s.MetadataWithin(t.Context(), []agent.ID{id(1)}, 1<<30)
	require.NoError(t, err)
	require.ElementsMatch(t, rows, found)
}

// What is the same again in one session is written again only when the touch
// interval has passed; what a new session says always is.
func testMetadataUnchanged(t *testing.T, open func(testing.TB, Options) Store) {
	s := open(t, Options{TouchInterval: time.Minute})
	at := time.Unix(1000, 0).UTC()
	stored := agent.Metadata{Agent: id(1), Key: "k", Value: "v", CollectedAt: at, Order: agent.Order{Epoch: 1, Sequence: 1}}
	other := stored
	other.Agent = id(2)
	register(t, s, id(2))
	upsert(t, s, []agent.Metadata{other})

	for name, c := range map[string]struct {
		change  func(*agent.Metadata)
		changes bool
	}{
		"same":           {func(*agent.Metadata) {}, false},
		"almost touched": {func(m *agent.Metadata) { m.CollectedAt = at.Add(time.Minute - 1) }, false},
		"no time":        {func(m *agent.Metadata) { m.CollectedAt = time.Time{} }, false},
		"earliest time":  {func(m *agent.Metadata) { m.CollectedAt = time.Unix(0, math.MinInt64).UTC() }, false},
		"older epoch":    {func(m *agent.Metadata) { m.Value, m.Order.Epoch = "x", 0 }, false},
		"older":          {func(m *agent.Metadata) { m.Value, m.Order.Sequence = "x", 0 }, false},
		"touched":        {func(m *agent.Metadata) { m.CollectedAt = at.Add(time.Minute) }, true},
		"value":          {func(m *agent.Metadata) { m.Value = "w" }, true},
		"error":          {func(m *agent.Metadata) { m.Error = "exit status 1" }, true},
		"epoch":          {func(m *agent.Metadata) { m.Order = agent.Order{Epoch: 2} }, true},
	} {
		register(t, s, id(1))
		upsert(t, s, []agent.Metadata{stored})
		next := stored
		next.Order.Sequence++
		c.change(&next)
		// Beside another row that is the same again.
		changed, _, err := s.UpsertMetadata(t.Context(), []agent.Metadata{other, next})
		require.NoError(t, err)
		want, wantChanged := stored, []agent.ID(nil)
		if c.changes {
			want, wantChanged = next, []agent.ID{id(1)}
		}
		require.Equal(t, wantChanged, changed, name)
		found, _, err := s.MetadataWithin(t.Context(), []agent.ID{id(1), id(2)}, 1<<30)
		require.NoError(t, err)
		require.Equal(t, []agent.Metadata{want, other}, found, name)
		apply(t, s, agent.Change{RemovedAgents: []agent.ID{id(1)}})
	}

	// A value that has no time is touched by the first that has one.
	other.Key, other.CollectedAt = "timeless", time.Time{}
	upsert(t, s, []agent.Metadata{other})
	other.Order.Sequence, other.CollectedAt = 2, at
	changed, _, err := s.UpsertMetadata(t.Context(), []agent.Metadata{other})
	require.NoError(t, err)
	require.Equal(t, []agent.ID{id(2)}, changed)

	// Without an interval each is written.
	s = open(t, Options{})
	register(t, s, id(2))
	upsert(t, s, []agent.Metadata{other})
	other.Order.Sequence, other.CollectedAt = 3, at.Add(-time.Hour)
	changed, _, err = s.UpsertMetadata(t.Context(), []agent.Metadata{other})
	require.NoError(t, err)
	require.Equal(t, []agent.ID{id(2)}, changed)
}

// Rows of several agents and sessions arrive in any order, but those of one session in
// theirs, in any batches. The last one of a key and session perhaps arrives again. They
// end in the newest values.
func testMetadataOrder(t *testing.T, open func(testing.TB, Options) Store) {
	stores := make(map[time.Duration]Store)
	for _, touch := range []time.Duration{0, 2, time.Hour} {
		stores[touch] = open(t, Options{TouchInterval: touch})
	}
	type value struct {
		agent agent.ID
		key   string
	}
	type session struct {
		agent agent.ID
		epoch int64
	}
	// Each draws what eight agents do, which meet in the batches.
	check(t, 0.2, func(rt *rapid.T) {
		touch := rapid.SampledFrom([]time.Duration{0, 2, time.Hour}).Draw(rt, "touch")
		s := stores[touch]
		agents := make([]agent.ID, 8)
		for i := range agents {
			agents[i] = uuid.New()
		}
		register(t, s, agents...)
		newest := make(map[value]agent.Metadata)
		sequences := make(map[session]int64)
		var rows, last []agent.Metadata
		n := rapid.IntRange(1, 160).Draw(rt, "rows")
		for range n {
			if len(last) > 0 && rapid.IntRange(0, 4).Draw(rt, "repeat") == 0 {
				rows = append(rows, rapid.SampledFrom(last).Draw(rt, "again"))
				continue
			}
			of := value{agents[rapid.IntRange(0, 7).Draw(rt, "agent")], rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "key")}
			text := rapid.SampledFrom([]string{"1", "2"}).Draw(rt, "value")
			in := session{of.agent, rapid.Int64Range(1, 3).Draw(rt, "epoch")}
			sequences[in] += rapid.Int64Range(1, 2).Draw(rt, "step")
			r := row(of.agent, of.key, text, in.epoch, sequences[in])
			r.Error = rapid.SampledFrom([]string{"", "exit status 1"}).Draw(rt, "error")
			rows = append(rows, r)
			last = append(slices.DeleteFunc(last, func(o agent.Metadata) bool {
				return o.Agent == of.agent && o.Key == of.key && o.Order.Epoch == in.epoch
			}), r)
			if old, ok := newest[of]; !ok || r.Order.Compare(old.Order) > 0 {
				newest[of] = r
			}
		}
		written := 0
		for part := range slices.Chunk(rows, rapid.IntRange(1, max(1, n/4)).Draw(rt, "batch")) {
			changed, _, err := s.UpsertMetadata(t.Context(), part)
			require.NoError(rt, err)
			for _, c := range changed {
				require.Contains(rt, agents, c)
			}
			written += len(changed)
		}
		require.GreaterOrEqual(rt, written, len(newest))
		found, _, err := s.MetadataWithin(t.Context(), agents, 1<<30)
		require.NoError(rt, err)
		require.Len(rt, found, len(newest))
		for _, m := range found {
			want := newest[value{m.Agent, m.Key}]
			if touch > 0 {
				// The first of equal values of a session may stay.
				require.LessOrEqual(rt, m.Order.Sequence, want.Order.Sequence)
				m.Order.Sequence, m.CollectedAt = want.Order.Sequence, want.CollectedAt
			}
			require.Equal(rt, want, m)
		}
	})
}

// check checks a property as rapid does, but only a share of its times, as each takes
// many calls of the database.
func check(t *testing.T, share float64, property func(*rapid.T)) {
	t.Helper()
	times := flag.Lookup("rapid.checks").Value
	all := times.String()
	n, err := strconv.Atoi(all)
	require.NoError(t, err)
	require.NoError(t, times.Set(strconv.Itoa(int(math.Ceil(share*float64(n))))))
	defer func() { require.NoError(t, times.Set(all)) }()
	rapid.Check(t, property)
}

// A read takes as many agents as fit, whole ones, and one at least.
func testMetadataWithin(t *testing.T, s Store) {
	const agents = 40 // more than one statement reads without pages
	ids := make([]agent.ID, 0, agents+1)
	var rows []agent.Metadata
	for n := range agents {
		ids = append(ids, id(byte(n+1)))
		register(t, s, id(byte(n+1)))
		if n == 20 {
			continue // which has none
		}
		for key := range 3 {
			rows = append(rows, row(id(byte(n+1)), fmt.Sprint("key", key), strings.Repeat("x", 1000), 1, 1))
		}
	}
	upsert(t, s, rows)
	ofAgent := 3 * rows[0].Bytes()
	for _, c := range []struct{ ids, limit, read int }{
		{40, 0, 1},
		{40, ofAgent, 1},
		{40, 2*ofAgent - 1, 1},
		{40, 2 * ofAgent, 2},
		{40, 20*ofAgent + 5, 20}, // and the one without, which is left
		{40, 21 * ofAgent, 21},
		{40, 39 * ofAgent, 39},
		{32, 5 * ofAgent, 5},
		{32, 31 * ofAgent, 31},
		{1, 0, 1},
	} {
		asked := slices.Clone(ids[:c.ids])
		slices.Reverse(asked)
		found, left, err := s.MetadataWithin(t.Context(), append(asked, asked[0]), c.limit)
		require.NoError(t, err, c)
		require.Len(t, found, 3*c.read, c)
		require.Equal(t, rows[:3*c.read], found, c)
		var want []agent.ID
		if 3*c.read < len(rows) && rows[3*c.read].Agent[15] <= byte(c.ids) {
			for _, id := range ids[:c.ids] {
				if bytes.Compare(id[:], rows[3*c.read].Agent[:]) >= 0 {
					want = append(want, id)
				}
			}
		}
		require.Equal(t, want, left, c)
	}
	found, left, err := s.MetadataWithin(t.Context(), nil, 0)
	require.NoError(t, err)
	require.Empty(t, found)
	require.Empty(t, left)
}

// A late row replaces no other that was collected later, and is not lost then: what is
// stored is newer. What its relay's session before stored does not keep it out.
func testMetadataLate(t *testing.T, s Store) {
	register(t, s, id(1))
	for name, c := range map[string]struct {
		stored, collected, late int64 // epoch and times
		order                   agent.Order
		lands, lost             bool
	}{
		"nothing is stored":            {0, 0, 10, agent.Order{Epoch: 9, Basis: 1}, true, false},
		"collected later":              {5, 50, 51, agent.Order{Epoch: 9, Basis: 5}, true, false},
		"collected earlier":            {5, 50, 49, agent.Order{Epoch: 9, Basis: 5}, false, false},
		"on a single replica":          {5, 50, 49, agent.Order{Epoch: 9}, false, false},
		"later, on a single replica":   {5, 50, 51, agent.Order{Epoch: 9}, true, false},
		"after its own":                {5, 50, 49, agent.Order{Epoch: 9, Basis: 1, Previous: 5}, true, false},
		"after its own, alone":         {5, 50, 49, agent.Order{Epoch: 9, Previous: 5}, true, false},
		"earlier than what is unknown": {5, 50, 49, agent.Order{Epoch: 9, Basis: 1}, false, false},
		"later than what is unknown":   {5, 50, 51, agent.Order{Epoch: 9, Basis: 1}, false, true},
		"of a lower epoch":             {11, 50, 51, agent.Order{Epoch: 9, Basis: 20}, false, true},
	} {
		if c.stored != 0 {
			before := row(id(1), name, "first", c.stored, 1)
			before.CollectedAt = time.Unix(0, c.collected).UTC()
			upsert(t, s, []agent.Metadata{before})
		}
		late := row(id(1), name, "second", 0, 0)
		late.Order, late.Late, late.CollectedAt = c.order, true, time.Unix(0, c.late).UTC()
		late.Order.Sequence = 2
		changed, newer, err := s.UpsertMetadata(t.Context(), []agent.Metadata{late})
		require.NoError(t, err)
		require.Equal(t, c.lands, len(changed) == 1, name)
		require.Equal(t, c.lost, len(newer) == 1, name)
		found, _, err := s.MetadataWithin(t.Context(), []agent.ID{id(1)}, 1<<30)
		require.NoError(t, err)
		i := slices.IndexFunc(found, func(m agent.Metadata) bool { return m.Key == name })
		require.Equal(t, c.lands, found[i].Value == "second", name)
		if c.lands {
			require.Equal(t, late.CollectedAt, found[i].CollectedAt, name)
		}
	}
}
