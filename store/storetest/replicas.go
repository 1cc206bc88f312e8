package storetest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

func push(n byte, data string) agent.PushRow {
	return agent.PushRow{
		Instance:  agent.Instance{0: 0xb, 15: n},
		Replica:   "coderd-" + string('a'+rune(n)),
		UpdatedAt: time.Unix(1000, int64(n)).UTC(),
		Data:      []byte(data),
	}
}

// stored returns rows as they are read after a first write.
func stored(rows ...agent.PushRow) []agent.PushRow {
	for i := range rows {
		rows[i].Version++
	}
	return rows
}

func allPushes(t testing.TB, s Store) []agent.PushRow {
	t.Helper()
	rows, err := s.Pushes(t.Context(), nil)
	require.NoError(t, err)
	return rows
}

func testPushes(t *testing.T, s Store) {
	require.Empty(t, allPushes(t, s))

	first, second := push(1, "\x00\xff"), push(2, "b")
	var bare agent.PushRow
	for _, row := range []agent.PushRow{second, first, bare} {
		require.NoError(t, s.SavePush(t.Context(), row))
	}
	require.Equal(t, stored(bare, first, second), allPushes(t, s))

	newer := push(1, "newer")
	newer.Replica, newer.UpdatedAt, newer.Version = "zoë", first.UpdatedAt.Add(-time.Hour), 1
	require.NoError(t, s.SavePush(t.Context(), newer))
	require.Equal(t, stored(bare, newer, second), allPushes(t, s))
	some, err := s.Pushes(t.Context(), []agent.Instance{second.Instance, push(99, "").Instance, first.Instance, second.Instance})
	require.NoError(t, err)
	require.Equal(t, stored(newer, second), some)
	some, err = s.Pushes(t.Context(), []agent.Instance{})
	require.NoError(t, err)
	require.Empty(t, some)
	versions, err := s.PushVersions(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[agent.Instance]int64{bare.Instance: 1, first.Instance: 2, second.Instance: 1}, versions)

	newer.UpdatedAt = time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC)
	require.ErrorIs(t, s.SavePush(t.Context(), newer), agent.ErrRejected)
}

// A row is written in place of the one that its writer read, or not at all.
func testPushesOutdated(t *testing.T, s Store) {
	require.NoError(t, s.SavePush(t.Context(), push(1, "a")))
	second := push(1, "b")
	second.Version = 1
	require.NoError(t, s.SavePush(t.Context(), second))
	want := stored(second)
	for _, version := range []int64{0, 1, 3} {
		late := push(1, "late")
		late.Version = version
		err := s.SavePush(t.Context(), late)
		require.ErrorIs(t, err, agent.ErrOutdated, version)
		require.NotErrorIs(t, err, agent.ErrRejected, version)
		require.Equal(t, want, allPushes(t, s))
	}
	gone := push(2, "nothing is stored")
	gone.Version = 1
	require.ErrorIs(t, s.SavePush(t.Context(), gone), agent.ErrOutdated)
	require.Equal(t, want, allPushes(t, s))
}

func testPushesFolded(t *testing.T, s Store) {
	for n := range byte(4) {
		require.NoError(t, s.SavePush(t.Context(), push(n, "old")))
	}
	old := stored(push(0, "old"), push(1, "old"), push(2, "old"), push(3, "old"))
	totals := agent.PushRow{UpdatedAt: time.Unix(7, 0).UTC(), Data: []byte("totals")}
	less := push(0, "less")
	less.Version = 1
	bad := push(9, "bad")
	bad.UpdatedAt = time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC)
	outdated := old[2]
	outdated.Version = 2
	lost := push(99, "")
	lost.Version = 1

	// One transaction: nothing is deleted or written when a row is not.
	for _, c := range []struct {
		rows, removed []agent.PushRow
		want          error
	}{
		{[]agent.PushRow{totals, bad}, old[1:2], agent.ErrRejected},
		{[]agent.PushRow{totals, push(0, "first")}, old[1:2], agent.ErrOutdated},
		{[]agent.PushRow{totals, outdated}, old[1:2], agent.ErrOutdated},
		{[]agent.PushRow{totals}, []agent.PushRow{old[1], outdated}, agent.ErrOutdated},
		{[]agent.PushRow{totals}, []agent.PushRow{lost, old[1]}, agent.ErrOutdated},
	} {
		require.ErrorIs(t, s.FoldPushes(t.Context(), c.rows, c.removed), c.want)
		require.Equal(t, old, allPushes(t, s))
	}

	require.NoError(t, s.FoldPushes(t.Context(), []agent.PushRow{less, totals}, []agent.PushRow{old[2], old[1]}))
	require.Equal(t, append(stored(totals, less), old[3]), allPushes(t, s))
	totals.Version = 1
	require.NoError(t, s.FoldPushes(t.Context(), []agent.PushRow{totals}, nil))
	require.Equal(t, append(stored(totals, less)[:1:1], stored(less)[0], old[3]), allPushes(t, s))
}

func testReplicas(t *testing.T, s Store) {
	heartbeat := func(n byte, name string) []agent.Replica {
		replicas, _, err := s.RecordHeartbeat(t.Context(), agent.Replica{ID: id(n), Name: name, Heartbeats: 77}, -1)
		require.NoError(t, err)
		return replicas
	}
	require.Equal(t, []agent.Replica{{ID: id(2), Name: "b", Heartbeats: 1}}, heartbeat(2, "b"))
	require.Equal(t, []agent.Replica{{ID: id(1), Name: "a", Heartbeats: 1}, {ID: id(2), Name: "b", Heartbeats: 1}}, heartbeat(1, "a"))
	require.Equal(t, []agent.Replica{{ID: id(1), Name: "a", Heartbeats: 1}, {ID: id(2), Name: "c", Heartbeats: 2}}, heartbeat(2, "c"))
	require.NoError(t, s.RemoveReplicas(t.Context(), nil))
	require.NoError(t, s.RemoveReplicas(t.Context(), []agent.ID{id(9), id(2), id(9)}))
	require.Equal(t, []agent.Replica{{ID: id(1), Name: "a", Heartbeats: 2}}, heartbeat(1, "a"))
	// One that was thought dead is back.
	require.Equal(t, []agent.Replica{{ID: id(1), Name: "a", Heartbeats: 2}, {ID: id(2), Name: "b", Heartbeats: 1}}, heartbeat(2, "b"))

	require.NoError(t, s.NoteGone(t.Context(), nil))
	require.NoError(t, s.NoteGone(t.Context(), []agent.Replica{{ID: id(1), Heartbeats: 2}, {ID: id(2), Heartbeats: 2}, {ID: id(9)}}))
	require.Equal(t, []agent.Replica{{ID: id(1), Name: "a", Heartbeats: 2, Phase: agent.ReplicaGone}, {ID: id(2), Name: "b", Heartbeats: 2}}, heartbeat(2, "b"), "that has another number")
	require.Equal(t, []agent.Replica{{ID: id(1), Name: "a", Heartbeats: 3}, {ID: id(2), Name: "b", Heartbeats: 2}}, heartbeat(1, "a"), "it is back")
}

// testStatuses: each replica reads what the others said last, and how long ago.
func testStatuses(t *testing.T, s Store) {
	exchange := func(n byte, status string, most int) (others []agent.SavedStatus) {
		t.Helper()
		others, stored, err := s.ExchangeStatus(t.Context(), id(n), []byte(status), most, 4)
		require.NoError(t, err)
		require.True(t, stored)
		return others
	}
	_, stored, err := s.ExchangeStatus(t.Context(), id(1), []byte("a"), 9, 4)
	require.NoError(t, err)
	require.False(t, stored, "it has no row")
	for n := byte(1); n <= 3; n++ {
		_, _, err := s.RecordHeartbeat(t.Context(), agent.Replica{ID: id(n)}, -1)
		require.NoError(t, err)
	}
	require.Empty(t, exchange(1, "a", 9), "nothing was stored before")
	others := exchange(2, "bbbb", 9)
	require.Len(t, others, 1)
	require.Equal(t, agent.SavedStatus{Replica: id(1), Age: others[0].Age, Status: []byte("a")}, others[0])
	require.GreaterOrEqual(t, others[0].Age, time.Duration(0))
	require.Less(t, others[0].Age, time.Minute)
	for age := others[0].Age; others[0].Age <= age; { // it grows
		others = exchange(2, "bbbb", 9)
	}
	others = exchange(1, "ccccc", 9)
	require.Len(t, others, 1)
	require.Equal(t, "bbbb", string(others[0].Status))

	others = exchange(3, "", 9)
	require.Equal(t, []agent.ID{id(1), id(2)}, []agent.ID{others[0].Replica, others[1].Replica}, "the newest first")
	require.Nil(t, others[0].Status, "too large")
	require.Equal(t, "bbbb", string(others[1].Status))
	require.Len(t, exchange(3, "", 1), 1)

	require.NoError(t, s.RemoveReplicas(t.Context(), []agent.ID{id(1), id(2)}))
	require.Empty(t, exchange(3, "d", 9), "they go with the replica")
}

func testLease(t *testing.T, s Store) {
	before := time.Now()
	clock, err := s.Clock(t.Context())
	require.NoError(t, err)
	require.WithinRange(t, clock, before.Truncate(time.Microsecond), time.Now())
	heartbeat := func(n byte, takeover int64) agent.Lease {
		_, lease, err := s.RecordHeartbeat(t.Context(), agent.Replica{ID: id(n)}, takeover)
		require.NoError(t, err)
		return lease
	}
	require.Equal(t, agent.Lease{IntervalFactor: 1, Holder: id(1), Heartbeats: 1}, heartbeat(1, -1), "nobody had it")
	require.Equal(t, agent.Lease{IntervalFactor: 1, Holder: id(1), Heartbeats: 1}, heartbeat(2, -1), "not taken")
	require.Equal(t, agent.Lease{IntervalFactor: 1, Holder: id(1), Heartbeats: 2}, heartbeat(1, -1), "renewed")
	require.Equal(t, agent.Lease{IntervalFactor: 1, Holder: id(1), Heartbeats: 2}, heartbeat(2, 1), "it is alive")
	require.Equal(t, agent.Lease{IntervalFactor: 1, Holder: id(1), Heartbeats: 2}, heartbeat(2, 3), "it was never there")
	require.Equal(t, agent.Lease{IntervalFactor: 1, Holder: id(2), Heartbeats: 3}, heartbeat(2, 2), "taken over")
	require.Equal(t, agent.Lease{IntervalFactor: 1, Holder: id(2), Heartbeats: 3}, heartbeat(1, -1), "lost")

	require.NoError(t, s.RemoveReplicas(t.Context(), []agent.ID{id(1)}))
	require.Equal(t, agent.Lease{IntervalFactor: 1, Holder: id(2), Heartbeats: 3}, heartbeat(3, -1), "not of the removed one")
	require.NoError(t, s.RemoveReplicas(t.Context(), []agent.ID{id(1), id(2)}))
	require.Equal(t, agent.Lease{IntervalFactor: 1, Holder: id(3), Heartbeats: 4}, heartbeat(3, -1), "free")
}

func testIntervalFactor(t *testing.T, s Store) {
	nobody := agent.ID{}
	lease, err := s.Lease(t.Context())
	require.NoError(t, err)
	require.Equal(t, agent.Lease{IntervalFactor: 1}, lease)
	require.NoError(t, s.SaveIntervalFactor(t.Context(), nobody, 1.5), "who is alone")
	require.ErrorIs(t, s.SaveIntervalFactor(t.Context(), id(1), 4), agent.ErrOutdated)

	heartbeat := func(n byte, load agent.Load) (replicas []agent.Replica, lease agent.Lease) {
		replicas, lease, err := s.RecordHeartbeat(t.Context(), agent.Replica{ID: id(n), Load: load}, -1)
		require.NoError(t, err)
		return replicas, lease
	}
	_, lease = heartbeat(1, agent.Load{})
	require.Equal(t, agent.Lease{Holder: id(1), Heartbeats: 1, IntervalFactor: 1.5}, lease, "a new holder takes it over")
	require.ErrorIs(t, s.SaveIntervalFactor(t.Context(), nobody, 4), agent.ErrOutdated)
	require.NoError(t, s.SaveIntervalFactor(t.Context(), id(1), 2))
	busy, idle := agent.Load{CPU: 1.25, PendingAge: 1e6, Flush: 0.1}, agent.Load{CPU: 0.01}
	replicas, lease := heartbeat(2, busy)
	require.Equal(t, agent.Lease{Holder: id(1), Heartbeats: 1, IntervalFactor: 2}, lease)
	require.Equal(t, []agent.Replica{{ID: id(1), Heartbeats: 1}, {ID: id(2), Heartbeats: 1, Load: busy}}, replicas)
	require.ErrorIs(t, s.SaveIntervalFactor(t.Context(), id(2), 3), agent.ErrOutdated)
	replicas, _ = heartbeat(2, idle)
	require.Equal(t, idle, replicas[1].Load)
	require.Empty(t, replicas[1].Config)
	for _, config := range []string{`{"token":"a"}`, `{"token":"b"}`} {
		replicas, _, err = s.RecordHeartbeat(t.Context(), agent.Replica{ID: id(2), Load: idle, Config: config}, -1)
		require.NoError(t, err)
		require.Equal(t, config, replicas[1].Config)
	}
	require.Equal(t, agent.ReplicaUnknown, replicas[1].Phase)
	for _, phase := range []agent.ReplicaPhase{agent.ReplicaStarting, agent.ReplicaLeaving} {
		replicas, _, err = s.RecordHeartbeat(t.Context(), agent.Replica{ID: id(2), Load: idle, Phase: phase}, -1)
		require.NoError(t, err)
		require.Equal(t, phase, replicas[1].Phase)
	}

	require.NoError(t, s.RemoveReplicas(t.Context(), []agent.ID{id(1)}))
	_, lease = heartbeat(2, idle)
	require.Equal(t, agent.Lease{Holder: id(2), Heartbeats: 2, IntervalFactor: 2}, lease)
	stored, err := s.Lease(t.Context())
	require.NoError(t, err)
	require.Equal(t, lease, stored)
}

func testBuilds(t *testing.T, s Store) {
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
