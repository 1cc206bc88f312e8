package storetest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// opening is a stream of the subscription with the name.
func opening(name string, stream byte, at agent.Position) agent.SubscriptionOpening {
	return agent.SubscriptionOpening{Name: name, Stream: id(stream), Position: at, Lease: time.Hour, Max: 3, Incarnation: int64(stream) * 100}
}

func openSubscription(t testing.TB, s Store, o agent.SubscriptionOpening) agent.OpenedSubscription {
	t.Helper()
	opened, err := s.OpenSubscription(t.Context(), o)
	require.NoError(t, err)
	return opened
}

// nonceOf is that of the batch with the number which step makes; 0: there is none.
func nonceOf(number int64) int64 {
	if number == 0 {
		return 0
	}
	return 1000 + number
}

func positionOf(incarnation, number int64) agent.Position {
	return agent.Position{Incarnation: incarnation, Number: number, Nonce: nonceOf(number)}
}

// step is the next one of an opened stream.
func step(o agent.OpenedSubscription, stream byte, number, acked int64) agent.Delivery {
	return agent.Delivery{
		Subscription: o.ID, Incarnation: o.Incarnation, Stream: id(stream),
		Number: number, Nonce: nonceOf(number), Acked: acked, NextNonce: nonceOf(number + 1), Limit: 500, Lease: time.Hour,
	}
}

func deliver(t testing.TB, s Store, d agent.Delivery) *agent.ReportBatch {
	t.Helper()
	batch, err := s.DeliverReports(t.Context(), d)
	require.NoError(t, err)
	return batch
}

// A subscription counts once all replicas that live have confirmed it.
func testSubscriptionStarts(t *testing.T, s Store) {
	a := openSubscription(t, s, opening("a", 1, agent.Position{}))
	starts := func(within time.Duration, force bool) time.Time {
		t.Helper()
		since, err := s.StartSubscription(t.Context(), a.ID, id(50), within, force)
		require.NoError(t, err)
		return since
	}
	for _, writer := range []byte{50, 51, 52} {
		require.NoError(t, s.RecordReportWriterHeartbeat(t.Context(), id(writer)))
	}
	require.Zero(t, starts(0, false))
	require.NoError(t, s.ConfirmSubscriptions(t.Context(), id(50), []int64{a.ID, 999}))
	require.NoError(t, s.ConfirmSubscriptions(t.Context(), id(50), []int64{a.ID}))
	require.Zero(t, starts(time.Hour, false))
	require.NoError(t, s.ConfirmSubscriptions(t.Context(), id(51), []int64{a.ID}))
	require.Zero(t, starts(time.Hour, false))
	require.NoError(t, s.RemoveReportWriter(t.Context(), id(52)))
	since := starts(time.Hour, false)
	require.WithinDuration(t, time.Now(), since, time.Minute)
	require.NoError(t, s.RecordReportWriterHeartbeat(t.Context(), id(53)))
	require.Equal(t, since, starts(time.Hour, false), "it stays")
	all, err := s.Subscriptions(t.Context())
	require.NoError(t, err)
	require.Equal(t, []agent.Subscription{{ID: a.ID, Name: "a", Incarnation: 100, Since: since}}, all)

	b := openSubscription(t, s, opening("b", 2, agent.Position{}))
	a = b
	require.NoError(t, s.ConfirmSubscriptions(t.Context(), id(50), []int64{b.ID}))
	require.Zero(t, starts(time.Hour, false))
	require.NotZero(t, starts(0, false), "the others recorded no heartbeat lately")
	c := openSubscription(t, s, opening("c", 3, agent.Position{}))
	a = c
	require.NotZero(t, starts(time.Hour, true))
	a.ID = 999
	_, err = s.StartSubscription(t.Context(), a.ID, id(50), 0, false)
	require.ErrorIs(t, err, agent.ErrSuperseded)

	_, err = s.OpenSubscription(t.Context(), opening("d", 4, agent.Position{}))
	require.ErrorIs(t, err, agent.ErrTooMany)
	require.NotErrorIs(t, err, agent.ErrRejected)
	require.ErrorContains(t, err, "too many subscriptions: want at most 3")
}

// A newer stream has the subscription, unless it stands by.
func testSubscriptionStreams(t *testing.T, s Store) {
	a := openSubscription(t, s, opening("a", 1, agent.Position{}))
	addReports(t, s, write(50, 1, []agent.ReportSum{sumOf(1, 1, 1, 1)}, a.ID))
	first := deliver(t, s, step(a, 1, 0, 0))

	standBy := opening("a", 2, agent.Position{})
	standBy.StandBy = true
	require.Equal(t, agent.OpenedSubscription{Owned: true}, openSubscription(t, s, standBy))
	require.Nil(t, deliver(t, s, step(a, 1, 1, 0)), "nothing changed")

	// It has no time: who stands by has it.
	short := step(a, 1, 1, 0)
	short.Lease = 0
	require.Nil(t, deliver(t, s, short))
	opened := openSubscription(t, s, standBy)
	require.Equal(t, agent.OpenedSubscription{Subscription: a.Subscription, Number: 1, Nonce: nonceOf(1), Unacked: first}, opened)
	_, err := s.DeliverReports(t.Context(), step(a, 1, 1, 1))
	require.ErrorIs(t, err, agent.ErrSuperseded)
	require.NoError(t, s.ReleaseSubscription(t.Context(), a.ID, id(1)), "of another stream: nothing")
	standBy.Stream = id(3)
	require.True(t, openSubscription(t, s, standBy).Owned)
	require.NoError(t, s.ReleaseSubscription(t.Context(), a.ID, id(2)))
	require.False(t, openSubscription(t, s, standBy).Owned)
	require.Equal(t, first, openSubscription(t, s, opening("a", 4, agent.Position{})).Unacked)
	_, err = s.DeliverReports(t.Context(), step(a, 3, 1, 1))
	require.ErrorIs(t, err, agent.ErrSuperseded)
}

// A batch is the same until it is acked, by a step or by the position of the next
// stream. The answer of a step can be lost.
func testSubscriptionDelivers(t *testing.T, s Store) {
	a := openSubscription(t, s, opening("a", 1, agent.Position{}))
	require.Nil(t, deliver(t, s, step(a, 1, 0, 0)))
	sequence := int64(0)
	add := func(n byte, bytes int64) {
		t.Helper()
		sequence++
		addReports(t, s, write(50, sequence, []agent.ReportSum{sumOf(n, bytes, 1, sequence)}, a.ID))
	}
	add(1, 1)
	add(2, 2)
	one := step(a, 1, 0, 0)
	one.Limit = 1
	first := deliver(t, s, one)
	require.Equal(t, int64(1), first.Number)
	require.Equal(t, id(1), first.Sums[0].Agent)
	require.True(t, first.More)
	first.More = false // of a batch that is read again nobody knows
	add(1, 4)
	require.Equal(t, first, deliver(t, s, one), "the answer was lost")
	require.Nil(t, deliver(t, s, step(a, 1, 1, 0)), "it is not acked")
	none := step(a, 1, 1, 1)
	none.Limit = 0
	require.Nil(t, deliver(t, s, none), "acked, and none asked for")

	require.Nil(t, openSubscription(t, s, opening("a", 2, agent.Position{})).Unacked)
	second := deliver(t, s, step(a, 2, 1, 1))
	require.Len(t, second.Sums, 2)
	require.Equal(t, int64(4), second.Sums[0].RxBytes)
	add(1, 8)
	require.Equal(t, second, openSubscription(t, s, opening("a", 3, positionOf(a.Incarnation, 1))).Unacked)
	require.Equal(t, second, openSubscription(t, s, opening("a", 4, positionOf(a.Incarnation+1, 3))).Unacked, "another incarnation covers nothing")
	opened := openSubscription(t, s, opening("a", 5, positionOf(a.Incarnation, 2)))
	require.Nil(t, opened.Unacked)
	require.Equal(t, int64(2), opened.Number)
	third := deliver(t, s, step(a, 5, 2, 2))
	require.Equal(t, int64(3), third.Number)
	require.Equal(t, int64(8), third.Sums[0].RxBytes)
	_, err := s.DeliverReports(t.Context(), step(a, 5, 1, 1))
	require.ErrorIs(t, err, agent.ErrSuperseded, "a step of long ago")
}

// A batch is bounded by the bytes of its data, too, but has one sum.
func testBatchBytes(t *testing.T, s Store) {
	a := openSubscription(t, s, opening("a", 1, agent.Position{}))
	sums := []agent.ReportSum{sumOf(1, 1, 1, 1), sumOf(2, 1, 1, 1), sumOf(3, 1, 1, 1), sumOf(4, 1, 1, 1)}
	for i, size := range []int{20, 5, 5, 1} {
		sums[i].Data = make([]byte, size)
	}
	addReports(t, s, write(50, 1, sums, a.ID))
	d := step(a, 1, 0, 0)
	d.Bytes = 10
	require.Equal(t, &agent.ReportBatch{Number: 1, Nonce: nonceOf(1), Sums: sums[:1], More: true}, deliver(t, s, d))
	d = step(a, 1, 1, 1)
	d.Bytes = 10
	require.Equal(t, &agent.ReportBatch{Number: 2, Nonce: nonceOf(2), Sums: sums[1:3], More: true}, deliver(t, s, d))
	d = step(a, 1, 2, 2)
	d.Bytes = 10
	require.Equal(t, &agent.ReportBatch{Number: 3, Nonce: nonceOf(3), Sums: sums[3:]}, deliver(t, s, d))
}

// The database is older than what the watcher has processed. Numbers would be given
// twice, so they are of another incarnation. A batch that it has may be of after the
// restore, so it is sent, whether the watcher has processed it or not.
func testSubscriptionRestored(t *testing.T, s Store) {
	a := openSubscription(t, s, opening("a", 1, agent.Position{}))
	addReports(t, s, write(50, 1, []agent.ReportSum{sumOf(1, 1, 1, 1)}, a.ID))
	batch := deliver(t, s, step(a, 1, 0, 0))
	opened := openSubscription(t, s, opening("a", 2, agent.Position{Incarnation: a.Incarnation, Number: 5}))
	require.True(t, opened.Restored)
	require.Equal(t, int64(200), opened.Incarnation)
	require.Equal(t, batch, opened.Unacked)
	_, err := s.DeliverReports(t.Context(), step(a, 2, 1, 1))
	require.ErrorIs(t, err, agent.ErrSuperseded)
	addReports(t, s, write(50, 2, []agent.ReportSum{sumOf(1, 2, 1, 2)}, a.ID))
	second := deliver(t, s, step(opened, 2, opened.Number, opened.Number))
	require.Equal(t, int64(2), second.Sums[0].RxBytes)
	again := openSubscription(t, s, opening("a", 3, agent.Position{Incarnation: a.Incarnation, Number: 5}))
	require.False(t, again.Restored)
	require.Equal(t, second, again.Unacked)
	// Another watcher has processed the batch, before the incarnation changed.
	acked := openSubscription(t, s, opening("a", 4, positionOf(a.Incarnation, 2)))
	require.False(t, acked.Restored)
	require.Nil(t, acked.Unacked)
}

// The database is older than what the watcher has processed. It has assigned the number
// to another batch since, which the watcher's position does not cover.
func testNumberGivenTwice(t *testing.T, s Store) {
	a := openSubscription(t, s, opening("a", 1, agent.Position{}))
	addReports(t, s, write(50, 1, []agent.ReportSum{sumOf(1, 1, 1, 1)}, a.ID))
	batch := deliver(t, s, step(a, 1, 0, 0))
	lost := positionOf(a.Incarnation, 1)
	lost.Nonce++
	// A stream of before does not ack it, either.
	step1 := step(a, 1, 1, 1)
	step1.Nonce = lost.Nonce
	_, err := s.DeliverReports(t.Context(), step1)
	require.ErrorIs(t, err, agent.ErrSuperseded)
	opened := openSubscription(t, s, opening("a", 2, lost))
	require.True(t, opened.Restored)
	require.Equal(t, int64(200), opened.Incarnation)
	require.Equal(t, batch, opened.Unacked)
	require.Equal(t, nonceOf(1), opened.Nonce)
	for number, nonce := range []int64{0, lost.Nonce} {
		again := openSubscription(t, s, opening("a", 3, agent.Position{Incarnation: opened.Incarnation, Number: int64(number), Nonce: nonce}))
		require.Equal(t, batch, again.Unacked)
		require.Equal(t, number == 1, again.Restored)
	}
	acked := openSubscription(t, s, opening("a", 4, positionOf(300, 1)))
	require.False(t, acked.Restored)
	require.Nil(t, acked.Unacked)
	require.Equal(t, nonceOf(1), acked.Nonce)
}

// What an expired subscription gathered is removed part by part, whatever others have.
func testLargeSubscriptionExpires(t *testing.T, s Store) {
	kept := openSubscription(t, s, opening("kept", 1, agent.Position{}))
	gone := openSubscription(t, s, opening("gone", 2, agent.Position{}))
	addReports(t, s, write(50, 1, []agent.ReportSum{sumOf(1, 1, 1, 1)}, kept.ID))
	const agents = 12_000
	for sequence := int64(2); sequence < 2+agents/1000; sequence++ {
		var sums []agent.ReportSum
		for n := range 1000 {
			sum := sumOf(1, 1, 1, 1)
			sum.Agent = agent.ID{byte(n), byte(n >> 8), byte(sequence)}
			sums = append(sums, sum)
		}
		addReports(t, s, write(50, sequence, sums, gone.ID))
	}
	short := step(gone, 2, 0, 0)
	short.Limit, short.Lease = 0, -time.Hour
	require.Nil(t, deliver(t, s, short))
	expired, err := s.ExpireSubscriptions(t.Context(), time.Minute)
	require.NoError(t, err)
	require.Equal(t, []agent.ExpiredSubscription{{Name: "gone", Agents: agents}}, expired)
	counts, err := s.CountReportSums(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[int64]agent.ReportCount{kept.ID: {Agents: 1, Bytes: 2}}, counts)
}

func testSubscriptionExpires(t *testing.T, s Store) {
	a := openSubscription(t, s, opening("a", 1, agent.Position{}))
	b := openSubscription(t, s, opening("b", 2, agent.Position{}))
	addReports(t, s, write(50, 1, []agent.ReportSum{sumOf(1, 1, 1, 1), sumOf(2, 1, 1, 1)}, a.ID, b.ID))
	require.NotNil(t, deliver(t, s, agent.Delivery{Subscription: a.ID, Incarnation: a.Incarnation, Stream: id(1), Limit: 1, Lease: -time.Hour}))
	expired, err := s.ExpireSubscriptions(t.Context(), 2*time.Hour)
	require.NoError(t, err)
	require.Empty(t, expired)
	expired, err = s.ExpireSubscriptions(t.Context(), time.Minute)
	require.NoError(t, err)
	require.Equal(t, []agent.ExpiredSubscription{{Name: "a", Agents: 1, Batches: 1}}, expired)
	counts, err := s.CountReportSums(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[int64]agent.ReportCount{b.ID: {Agents: 2, Bytes: 4}}, counts)
	_, err = s.DeliverReports(t.Context(), step(a, 1, 1, 1))
	require.ErrorIs(t, err, agent.ErrSuperseded)
	again := openSubscription(t, s, opening("a", 3, agent.Position{Incarnation: a.Incarnation, Number: 1}))
	require.True(t, again.Created)
	require.NotEqual(t, a.ID, again.ID)
	require.NotEqual(t, a.Incarnation, again.Incarnation)
	require.Equal(t, agent.ReportWritten{Removed: 1}, addReports(t, s, write(50, 2, []agent.ReportSum{sumOf(1, 1, 1, 1)}, a.ID)))
}
