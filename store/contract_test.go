package store

import (
	"context"
	"maps"

	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
)

// testContract is what every database must do. open returns an empty Store
// that is closed when the test ends.
func testContract(t *testing.T, open func(testing.TB) *Store) {
	t.Run("Registrations", func(t *testing.T) { testRegistrations(t, open(t)) })
	t.Run("RegistrationsReplaced", func(t *testing.T) { testRegistrationsReplaced(t, open(t)) })
	t.Run("RegistrationsRemoved", func(t *testing.T) { testRegistrationsRemoved(t, open(t)) })
	t.Run("RegistrationsAtomic", func(t *testing.T) { testRegistrationsAtomic(t, open(t)) })
	t.Run("Metadata", func(t *testing.T) { testMetadata(t, open(t)) })
	t.Run("MetadataRejected", func(t *testing.T) { testMetadataRejected(t, open(t)) })
	t.Run("MetadataOrder", func(t *testing.T) { testMetadataOrder(t, open(t)) })
	t.Run("States", func(t *testing.T) { testStates(t, open(t)) })
	t.Run("StatesOrder", func(t *testing.T) { testStatesOrder(t, open(t)) })
	t.Run("Epochs", func(t *testing.T) { testEpochs(t, open(t)) })
	t.Run("Pushes", func(t *testing.T) { testPushes(t, open(t)) })
	t.Run("PushesFolded", func(t *testing.T) { testPushesFolded(t, open(t)) })
	t.Run("Builds", func(t *testing.T) { testBuilds(t, open(t)) })
	t.Run("Context", func(t *testing.T) { testContext(t, open(t)) })
}

// id returns the UUID that ends in n.
func id(n byte) agent.ID { return agent.ID{0: 0xa, 15: n} }

func registration(agentID, workspaceID agent.ID) agent.Registration {
	created := time.Date(2026, 3, 1, 10, 0, 0, 123456789, time.UTC)
	return agent.Registration{
		ID:                agentID,
		Name:              "main",
		CreatedAt:         created,
		ConnectionTimeout: 2 * time.Minute,
		TokenHash:         [32]byte{1, 2, 31: 3},
		Workspace: agent.Workspace{
			ID:            workspaceID,
			Name:          "dev",
			OwnerID:       id(200),
			OwnerUsername: "zoë",
			Template:      agent.Template{ID: id(201), Name: "docker", Version: "v3"},
			Organization:  "default",
			Build:         agent.Build{ID: id(202), CreatedAt: created.Add(-time.Minute), Transition: "start", IsPrebuild: true},
		},
		Apps: []agent.App{
			{ID: id(203), Slug: "code", DisplayName: "VS Code", Health: agent.AppHealthHealthy},
			{ID: id(204), Slug: "term", DisplayName: "Terminal \"1\"", Health: agent.AppHealthDisabled},
		},
		MetadataKeys: []string{"cpu", "disk usage"},
		Parent:       id(205),
	}
}

func register(t testing.TB, s *Store, agents ...agent.ID) {
	t.Helper()
	var c agent.Change
	for _, a := range agents {
		c.Agents = append(c.Agents, registration(a, id(100)))
	}
	require.NoError(t, s.ApplyChange(t.Context(), c))
}

func row(a agent.ID, key, value string, epoch, sequence int64) agent.Metadata {
	return agent.Metadata{
		Agent: a, Key: key, Value: value,
		CollectedAt: time.Unix(epoch, sequence).UTC(),
		Order:       agent.Order{Epoch: epoch, Sequence: sequence},
	}
}

func upsert(t testing.TB, s *Store, rows []agent.Metadata) {
	t.Helper()
	_, err := s.UpsertMetadata(t.Context(), rows)
	require.NoError(t, err)
}

func testRegistrations(t *testing.T, s *Store) {
	agents, workspaces, err := s.Registrations(t.Context())
	require.NoError(t, err)
	require.Empty(t, agents)
	require.Empty(t, workspaces)

	full := registration(id(1), id(100))
	bare := agent.Registration{ID: id(2), Workspace: agent.Workspace{ID: id(101)}}
	lonely := agent.Workspace{ID: id(102), Name: "stopped"}
	require.NoError(t, s.ApplyChange(t.Context(), agent.Change{
		Agents:     []agent.Registration{bare, full},
		Workspaces: []agent.Workspace{lonely},
	}))

	agents, workspaces, err = s.Registrations(t.Context())
	require.NoError(t, err)
	require.Equal(t, []agent.Registration{full, bare}, agents)
	require.Equal(t, []agent.Workspace{full.Workspace, bare.Workspace, lonely}, workspaces)
}

func testRegistrationsReplaced(t *testing.T, s *Store) {
	r := registration(id(1), id(100))
	sibling := registration(id(2), id(100))
	require.NoError(t, s.ApplyChange(t.Context(), agent.Change{Agents: []agent.Registration{r, sibling}}))
	kept := row(id(1), "cpu", "1", 5, 1)
	upsert(t, s, []agent.Metadata{kept})
	require.NoError(t, s.SaveEpochs(t.Context(), map[agent.ID]int64{id(1): 5}))
	state := agent.State{
		Agent:          id(1),
		Lifecycle:      agent.Lifecycle{State: agent.LifecycleReady, ChangedAt: time.Unix(9, 0).UTC()},
		LifecycleOrder: agent.Order{Epoch: 5, Sequence: 2},
		Startup:        agent.Startup{StartedAt: time.Unix(7, 0).UTC(), ReadyAt: time.Unix(9, 0).UTC(), Result: agent.LifecycleReady},
	}
	require.NoError(t, s.SaveStates(t.Context(), []agent.State{state}))

	r.Name, r.Apps, r.MetadataKeys, r.Parent = "renamed", nil, nil, agent.ID{}
	r.TokenHash[0] = 77
	r.Workspace.Name, r.Workspace.Template.Version = "dev2", "v4"
	r.Workspace.Build = agent.Build{ID: id(9), CreatedAt: r.CreatedAt, Transition: "stop"}
	require.NoError(t, s.ApplyChange(t.Context(), agent.Change{Agents: []agent.Registration{r}}))

	agents, workspaces, err := s.Registrations(t.Context())
	require.NoError(t, err)
	sibling.Workspace = r.Workspace
	require.Equal(t, []agent.Registration{r, sibling}, agents)
	require.Equal(t, []agent.Workspace{r.Workspace}, workspaces)

	// What the agent said outlives a new registration of it.
	found, err := s.Metadata(t.Context(), []agent.ID{id(1)})
	require.NoError(t, err)
	require.Equal(t, []agent.Metadata{kept}, found)
	epochs, err := s.Epochs(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[agent.ID]int64{id(1): 5}, epochs)
	states, err := s.States(t.Context())
	require.NoError(t, err)
	require.Equal(t, []agent.State{state}, states)
}

func testRegistrationsRemoved(t *testing.T, s *Store) {
	require.NoError(t, s.ApplyChange(t.Context(), agent.Change{Agents: []agent.Registration{
		registration(id(1), id(100)), registration(id(2), id(100)), registration(id(3), id(101)),
	}}))
	order := agent.Order{Epoch: 4, Sequence: 1}
	for _, a := range []agent.ID{id(1), id(2), id(3)} {
		upsert(t, s, []agent.Metadata{row(a, "k", "v", 4, 1)})
		require.NoError(t, s.SaveStates(t.Context(), []agent.State{{Agent: a, NetworkOrder: order}}))
	}
	require.NoError(t, s.SaveEpochs(t.Context(), map[agent.ID]int64{id(1): 4, id(2): 4, id(3): 4}))

	// Removals come first: agent 2 moves to the workspace's successor.
	moved := registration(id(2), id(102))
	require.NoError(t, s.ApplyChange(t.Context(), agent.Change{
		RemovedAgents:     []agent.ID{id(1), id(2), id(99)},
		RemovedWorkspaces: []agent.ID{id(101), id(98)},
		Agents:            []agent.Registration{moved},
	}))

	agents, workspaces, err := s.Registrations(t.Context())
	require.NoError(t, err)
	require.Equal(t, []agent.Registration{moved}, agents)
	require.Equal(t, []agent.ID{id(100), id(102)}, []agent.ID{workspaces[0].ID, workspaces[1].ID})
	keys, err := s.MetadataKeys(t.Context())
	require.NoError(t, err)
	require.Empty(t, keys)
	states, err := s.States(t.Context())
	require.NoError(t, err)
	require.Empty(t, states)
	epochs, err := s.Epochs(t.Context())
	require.NoError(t, err)
	require.Empty(t, epochs)
}

func testRegistrationsAtomic(t *testing.T, s *Store) {
	register(t, s, id(1))
	bad := registration(id(2), id(101))
	bad.CreatedAt = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	err := s.ApplyChange(t.Context(), agent.Change{
		RemovedAgents: []agent.ID{id(1)},
		Workspaces:    []agent.Workspace{{ID: id(103)}},
		Agents:        []agent.Registration{bad},
	})
	require.ErrorIs(t, err, agent.ErrRejected)
	agents, workspaces, err := s.Registrations(t.Context())
	require.NoError(t, err)
	require.Equal(t, []agent.Registration{registration(id(1), id(100))}, agents)
	require.Len(t, workspaces, 1)
}

func testMetadata(t *testing.T, s *Store) {
	register(t, s, id(1), id(2), id(3))
	upsert(t, s, nil)

	a := row(id(1), "a", "line\nzoë \U0001F600", 1, 1)
	b := row(id(1), "b", "", 1, 1)
	b.Error = "exit status 1"
	c := row(id(2), "a", "x", 1, 1)
	c.CollectedAt = time.Time{}
	upsert(t, s, []agent.Metadata{c, b, a})

	found, err := s.Metadata(t.Context(), []agent.ID{id(2), id(9), id(1), id(2), id(3)})
	require.NoError(t, err)
	require.Equal(t, []agent.Metadata{a, b, c}, found)
	found, err = s.Metadata(t.Context(), []agent.ID{id(3)})
	require.NoError(t, err)
	require.Empty(t, found)
	found, err = s.Metadata(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, found)

	keys, err := s.MetadataKeys(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[agent.ID][]string{id(1): {"a", "b"}, id(2): {"a"}}, keys)

	// More agents than one query names.
	many := []agent.ID{id(1)}
	for range 2 * metadataAgents {
		many = append(many, uuid.New())
	}
	found, err = s.Metadata(t.Context(), append(many, id(2)))
	require.NoError(t, err)
	require.Equal(t, []agent.Metadata{a, b, c}, found)
}

func testMetadataRejected(t *testing.T, s *Store) {
	register(t, s, id(1))
	good := row(id(1), "a", "1", 1, 1)
	for name, bad := range map[string]agent.Metadata{
		"unknown agent":     row(id(2), "a", "1", 1, 1),
		"time out of range": {Agent: id(1), Key: "b", CollectedAt: time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC)},
	} {
		_, err := s.UpsertMetadata(t.Context(), []agent.Metadata{good, bad, good})
		require.ErrorIs(t, err, agent.ErrRejected, name)
		require.ErrorContains(t, err, "upsert metadata: ", name)
		found, err := s.Metadata(t.Context(), []agent.ID{id(1), id(2)})
		require.NoError(t, err)
		require.Empty(t, found, "%s: one transaction", name)
	}
	changed, err := s.UpsertMetadata(t.Context(), []agent.Metadata{good, good, row(id(1), "b", "1", 1, 1)})
	require.NoError(t, err)
	require.Equal(t, 2, changed)
}

// Any order of arrival, in any batches, with repeats, ends in the newest rows.
func testMetadataOrder(t *testing.T, s *Store) {
	next := byte(0)
	rapid.Check(t, func(rt *rapid.T) {
		next++
		a := id(next)
		register(t, s, a)
		newest := make(map[string]agent.Metadata)
		var rows []agent.Metadata
		n := rapid.IntRange(1, 20).Draw(rt, "rows")
		for i := range n {
			key := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "key")
			epoch, sequence := rapid.Int64Range(1, 3).Draw(rt, "epoch"), rapid.Int64Range(0, 5).Draw(rt, "sequence")
			r := row(a, key, string(rune('A'+i)), epoch, sequence)
			if i := slices.IndexFunc(rows, func(o agent.Metadata) bool { return o.Key == key && o.Order == r.Order }); i >= 0 {
				r = rows[i] // the same statement again
			}
			rows = append(rows, r)
			if old, ok := newest[key]; !ok || r.Order.Compare(old.Order) > 0 {
				newest[key] = r
			}
		}
		rows = rapid.Permutation(rows).Draw(rt, "arrival")
		changed := 0
		for part := range slices.Chunk(rows, rapid.IntRange(1, n).Draw(rt, "batch")) {
			c, err := s.UpsertMetadata(t.Context(), part)
			require.NoError(rt, err)
			changed += c
		}
		require.GreaterOrEqual(rt, changed, len(newest))
		found, err := s.Metadata(t.Context(), []agent.ID{a})
		require.NoError(rt, err)
		got := make(map[string]agent.Metadata)
		for _, m := range found {
			got[m.Key] = m
		}
		require.Equal(rt, newest, got)
	})
}

func testStates(t *testing.T, s *Store) {
	states, err := s.States(t.Context())
	require.NoError(t, err)
	require.Empty(t, states)

	register(t, s, id(1), id(2), id(3))
	full := agent.State{
		Agent:          id(1),
		Lifecycle:      agent.Lifecycle{State: agent.LifecycleStartTimeout, ChangedAt: time.Unix(7, 9).UTC()},
		LifecycleOrder: agent.Order{Epoch: 1, Sequence: 1},
		AppHealth:      map[agent.ID]agent.AppHealth{id(203): agent.AppHealthUnhealthy, id(204): agent.AppHealthHealthy},
		AppHealthOrder: agent.Order{Epoch: 1, Sequence: 2},
		Network: agent.Network{
			NodeID: 1<<63 + 1, PreferredRegion: 10,
			Regions: []agent.Region{{ID: 10, Name: "Frankfurt", Latency: 1500 * time.Microsecond}, {ID: 11, Latency: -1}},
		},
		NetworkOrder: agent.Order{Epoch: 1, Sequence: 3},
	}
	partial := agent.State{Agent: id(2), LifecycleOrder: agent.Order{Epoch: 1}}
	silent := agent.State{Agent: id(3)}
	unknown := full
	unknown.Agent = id(99)
	require.NoError(t, s.SaveStates(t.Context(), []agent.State{unknown, silent, partial, full}))
	require.NoError(t, s.SaveStates(t.Context(), []agent.State{silent}))
	states, err = s.States(t.Context())
	require.NoError(t, err)
	require.Equal(t, []agent.State{full, partial}, states)

	unsaid := agent.State{Agent: id(3), LifecycleOrder: agent.Order{Epoch: 1}}
	unsaid.Lifecycle.ChangedAt = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	require.ErrorIs(t, s.SaveStates(t.Context(), []agent.State{unsaid}), agent.ErrRejected)
}

// Each part of a state has its own order.
func testStatesOrder(t *testing.T, s *Store) {
	register(t, s, id(1))
	lifecycleAt := func(state agent.LifecycleState, epoch, sequence int64) agent.State {
		return agent.State{
			Agent:          id(1),
			Lifecycle:      agent.Lifecycle{State: state},
			LifecycleOrder: agent.Order{Epoch: epoch, Sequence: sequence},
		}
	}
	both := lifecycleAt(agent.LifecycleReady, 2, 5)
	both.Network.NodeID, both.NetworkOrder = 7, agent.Order{Epoch: 2, Sequence: 9}
	for _, st := range []agent.State{
		lifecycleAt(agent.LifecycleStarting, 2, 4),
		both,
		lifecycleAt(agent.LifecycleOff, 1, 99),
		lifecycleAt(agent.LifecycleCreated, 2, 5),
	} {
		require.NoError(t, s.SaveStates(t.Context(), []agent.State{st}))
	}
	states, err := s.States(t.Context())
	require.NoError(t, err)
	require.Equal(t, []agent.State{both}, states)

	newer := lifecycleAt(agent.LifecycleShuttingDown, 3, 1)
	require.NoError(t, s.SaveStates(t.Context(), []agent.State{newer}))
	states, err = s.States(t.Context())
	require.NoError(t, err)
	both.Lifecycle, both.LifecycleOrder = newer.Lifecycle, newer.LifecycleOrder
	require.Equal(t, []agent.State{both}, states)
}

func testEpochs(t *testing.T, s *Store) {
	register(t, s, id(1), id(2), id(3))
	require.NoError(t, s.SaveEpochs(t.Context(), nil))
	require.NoError(t, s.SaveEpochs(t.Context(), map[agent.ID]int64{id(1): 10, id(2): 20, id(99): 30}))
	require.NoError(t, s.SaveEpochs(t.Context(), map[agent.ID]int64{id(1): 11, id(2): 19}))
	epochs, err := s.Epochs(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[agent.ID]int64{id(1): 11, id(2): 20}, epochs)
}

// Every method returns the error of a context that has ended, which is not a
// refusal.
func testBuilds(t *testing.T, s *Store) {
	at := time.Unix(1000, 0)
	observe := func(want []agent.ID, builds ...agent.ID) {
		t.Helper()
		fresh, err := s.ObserveBuilds(t.Context(), builds, at)
		require.NoError(t, err)
		require.Equal(t, want, fresh)
	}
	observe(nil)
	observe([]agent.ID{id(1), id(2)}, id(1), id(2), id(1))
	observe(nil, id(1))
	observe([]agent.ID{id(202)}, id(2), id(202))

	register(t, s, id(1)) // in a workspace with build 202
	at = at.Add(30 * 24 * time.Hour)
	observe([]agent.ID{id(3)}, id(3), id(1), id(2), id(202))
	at = at.Add(time.Nanosecond)
	observe(nil, id(3)) // those that no workspace has go now
	observe([]agent.ID{id(1), id(2)}, id(1), id(2), id(3), id(202))
}

func testContext(t *testing.T, s *Store) {
	register(t, s, id(1))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	state := agent.State{Agent: id(1), LifecycleOrder: agent.Order{Epoch: 1}}
	calls := map[string]func() error{
		"Ping": func() error { return s.Ping(ended) },
		"UpsertMetadata": func() error {
			_, err := s.UpsertMetadata(ended, []agent.Metadata{row(id(1), "a", "1", 1, 1)})
			return err
		},
		"ApplyChange":   func() error { return s.ApplyChange(ended, agent.Change{RemovedAgents: []agent.ID{id(1)}}) },
		"SaveStates":    func() error { return s.SaveStates(ended, []agent.State{state}) },
		"SaveEpochs":    func() error { return s.SaveEpochs(ended, map[agent.ID]int64{id(1): 1}) },
		"SavePush":      func() error { return s.SavePush(ended, push(1, "x")) },
		"FoldPushes":    func() error { return s.FoldPushes(ended, []agent.PushRow{push(1, "x")}, nil) },
		"Pushes":        func() error { _, err := s.Pushes(ended); return err },
		"Metadata":      func() error { _, err := s.Metadata(ended, []agent.ID{id(1)}); return err },
		"MetadataKeys":  func() error { _, err := s.MetadataKeys(ended); return err },
		"Registrations": func() error { _, _, err := s.Registrations(ended); return err },
		"States":        func() error { _, err := s.States(ended); return err },
		"Epochs":        func() error { _, err := s.Epochs(ended); return err },
	}
	names := slices.Sorted(maps.Keys(calls))

	for _, name := range names {
		err := calls[name]()
		require.ErrorIs(t, err, context.Canceled, name)
		require.NotErrorIs(t, err, agent.ErrRejected, name)
	}
	// Nothing of it was written, and the connections are still good.
	require.NoError(t, s.Ping(t.Context()))
	agents, _, err := s.Registrations(t.Context())
	require.NoError(t, err)
	require.Len(t, agents, 1)
	keys, err := s.MetadataKeys(t.Context())
	require.NoError(t, err)
	require.Empty(t, keys)
	pushes, err := s.Pushes(t.Context())
	require.NoError(t, err)
	require.Empty(t, pushes)
}

func push(n byte, data string) agent.PushRow {
	return agent.PushRow{
		Instance:  agent.Instance{0: 0xb, 15: n},
		Replica:   "coderd-" + string('a'+rune(n)),
		UpdatedAt: time.Unix(1000, int64(n)).UTC(),
		Data:      []byte(data),
	}
}

func testPushes(t *testing.T, s *Store) {
	pushes, err := s.Pushes(t.Context())
	require.NoError(t, err)
	require.Empty(t, pushes)

	first, second := push(1, "\x00\xff"), push(2, "b")
	var bare agent.PushRow
	for _, row := range []agent.PushRow{second, first, bare} {
		require.NoError(t, s.SavePush(t.Context(), row))
	}
	pushes, err = s.Pushes(t.Context())
	require.NoError(t, err)
	require.Equal(t, []agent.PushRow{bare, first, second}, pushes)

	newer := push(1, "newer")
	newer.Replica, newer.UpdatedAt = "zoë", first.UpdatedAt.Add(-time.Hour)
	require.NoError(t, s.SavePush(t.Context(), newer))
	pushes, err = s.Pushes(t.Context())
	require.NoError(t, err)
	require.Equal(t, []agent.PushRow{bare, newer, second}, pushes)

	newer.UpdatedAt = time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC)
	require.ErrorIs(t, s.SavePush(t.Context(), newer), agent.ErrRejected)
}

func testPushesFolded(t *testing.T, s *Store) {
	for n := range byte(4) {
		require.NoError(t, s.SavePush(t.Context(), push(n, "old")))
	}
	// One transaction: nothing is deleted when a row is refused.
	bad := push(9, "bad")
	bad.UpdatedAt = time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC)
	err := s.FoldPushes(t.Context(), []agent.PushRow{push(8, "good"), bad}, []agent.Instance{push(1, "").Instance})
	require.ErrorIs(t, err, agent.ErrRejected)
	pushes, err := s.Pushes(t.Context())
	require.NoError(t, err)
	require.Equal(t, []agent.PushRow{push(0, "old"), push(1, "old"), push(2, "old"), push(3, "old")}, pushes)

	totals := agent.PushRow{UpdatedAt: time.Unix(7, 0).UTC(), Data: []byte("totals")}
	err = s.FoldPushes(t.Context(), []agent.PushRow{totals, push(0, "less")},
		[]agent.Instance{push(1, "").Instance, push(2, "").Instance, push(99, "").Instance})
	require.NoError(t, err)
	pushes, err = s.Pushes(t.Context())
	require.NoError(t, err)
	require.Equal(t, []agent.PushRow{totals, push(0, "less"), push(3, "old")}, pushes)
}
