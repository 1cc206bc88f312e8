package storetest

import (
	"math"
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

// sumOf is one report of an agent with as many bytes received.
func sumOf(n byte, bytes, epoch, sequence int64) agent.ReportSum {
	return agent.ReportSum{
		Agent: id(n), Workspace: id(100 + n), Order: agent.Order{Epoch: epoch, Sequence: sequence},
		Reports: 1, RxBytes: bytes, ReceivedAt: time.Unix(epoch, sequence).UTC(), Data: []byte{byte(epoch), byte(sequence)},
	}
}

func write(writer byte, sequence int64, sums []agent.ReportSum, to ...int64) agent.ReportWrite {
	w := agent.ReportWrite{Writer: id(writer), Sequence: sequence, Sums: sums}
	for _, subscription := range to {
		w.To = append(w.To, agent.ReportTarget{Subscription: subscription})
	}
	return w
}

func addReports(t testing.TB, s Store, w agent.ReportWrite) agent.ReportWritten {
	t.Helper()
	if w.Sequence == 1 {
		require.NoError(t, s.RecordReportWriterHeartbeat(t.Context(), w.Writer))
	}
	written, err := s.AddReports(t.Context(), w)
	require.NoError(t, err)
	return written
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

// Counts add up and saturate, the rest is of the newest, whatever comes first. Nothing
// refers to the registration of an agent.
func testReports(t *testing.T, s Store) {
	a := openSubscription(t, s, opening("a", 1, agent.Position{}))
	b := openSubscription(t, s, opening("b", 2, agent.Position{}))
	require.Equal(t, agent.OpenedSubscription{Subscription: agent.Subscription{ID: a.ID, Name: "a", Incarnation: 100}, Created: true}, a)
	require.NotEqual(t, a.ID, b.ID)

	register(t, s, id(1))
	full := agent.ReportSum{
		Agent: id(1), Workspace: id(101), Order: agent.Order{Epoch: 2, Sequence: 5}, Reports: 2,
		RxPackets: 1, RxBytes: 2, TxPackets: 3, TxBytes: math.MaxInt64 - 1,
		ReceivedAt: time.Unix(7, 9).UTC(), LastUsedAt: time.Unix(7, 1).UTC(), Data: []byte("\x00\xff"),
	}
	older := agent.ReportSum{
		Agent: id(1), Workspace: id(102), Instance: agent.Instance{1}, Order: agent.Order{Epoch: 2, Sequence: 4}, Reports: 1,
		RxPackets: 10, RxBytes: 20, TxPackets: 30, TxBytes: 40,
		ReceivedAt: time.Unix(6, 0).UTC(), LastUsedAt: time.Unix(8, 0).UTC(), Data: []byte("older"),
	}
	bare := agent.ReportSum{Agent: id(2), Reports: 1}
	require.Zero(t, addReports(t, s, write(50, 1, []agent.ReportSum{bare, full}, b.ID, a.ID)))
	apply(t, s, agent.Change{RemovedAgents: []agent.ID{id(1)}})
	require.Zero(t, addReports(t, s, write(51, 1, []agent.ReportSum{older}, a.ID)))
	counts, err := s.CountReportSums(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[int64]agent.ReportCount{a.ID: {Agents: 2, Bytes: 2}, b.ID: {Agents: 2, Bytes: 2}}, counts)

	both := full
	both.Add(&older)
	require.Equal(t, int64(math.MaxInt64), both.TxBytes)
	require.Equal(t, full.Data, both.Data)
	require.Equal(t, older.LastUsedAt, both.LastUsedAt)
	require.Equal(t, &agent.ReportBatch{Number: 1, Nonce: nonceOf(1), Sums: []agent.ReportSum{both, bare}}, deliver(t, s, step(a, 1, 0, 0)))
	require.Equal(t, &agent.ReportBatch{Number: 1, Nonce: nonceOf(1), Sums: []agent.ReportSum{full, bare}}, deliver(t, s, step(b, 2, 0, 0)))

	// A newer session, whatever its sequence.
	newer := sumOf(1, 5, 3, 1)
	newer.Instance, full.Order.Sequence = agent.Instance{2}, 6
	require.Zero(t, addReports(t, s, write(50, 2, []agent.ReportSum{full}, a.ID)))
	require.Zero(t, addReports(t, s, write(50, 3, []agent.ReportSum{newer}, a.ID)))
	both = full
	both.Add(&newer)
	require.Equal(t, newer.Data, both.Data)
	require.Equal(t, []agent.ReportSum{both}, deliver(t, s, step(a, 1, 1, 1)).Sums)

	// More than one statement has.
	var many []agent.ReportSum
	for n := range 2*statementRows + 1 {
		sum := sumOf(1, int64(n), 1, 100)
		sum.Agent[1], sum.Agent[2] = byte(n>>8), byte(n)
		many = append(many, sum)
	}
	require.Zero(t, addReports(t, s, write(50, 4, many, b.ID)))
	d := step(b, 2, 1, 1)
	d.Limit = 2 * statementRows
	require.Equal(t, many[:d.Limit], deliver(t, s, d).Sums)
	require.Len(t, deliver(t, s, step(b, 2, 2, 2)).Sums, 1)
	has, err := s.HasReportSums(t.Context(), b.ID)
	require.NoError(t, err)
	require.False(t, has)

	far := bare
	far.ReceivedAt = time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC)
	_, err = s.AddReports(t.Context(), write(50, 5, []agent.ReportSum{far}, b.ID))
	require.ErrorIs(t, err, agent.ErrRejected)
}

// A write counts once, whenever it is repeated; what the database has lost is
// reported.
func testReportsWrittenOnce(t *testing.T, s Store) {
	a := openSubscription(t, s, opening("a", 1, agent.Position{}))
	number, sum := int64(0), int64(0)
	add := func(want agent.ReportWritten, writer byte, sequence, bytes int64) {
		t.Helper()
		report := sumOf(1, bytes, 1, sequence)
		report.Instance = agent.Instance{writer}
		require.Equal(t, want, addReports(t, s, write(writer, sequence, []agent.ReportSum{report}, a.ID)))
		if !want.Repeated {
			sum += bytes
		}
		batch := deliver(t, s, step(a, 1, number, number))
		if want.Repeated {
			require.Nil(t, batch)
			return
		}
		number++
		require.Equal(t, number, batch.Number)
		require.Equal(t, bytes, batch.Sums[0].RxBytes)
	}
	for _, writer := range []byte{50, 50, 51} {
		require.NoError(t, s.RecordReportWriterHeartbeat(t.Context(), id(writer)))
	}
	add(agent.ReportWritten{}, 50, 1, 1)
	add(agent.ReportWritten{Repeated: true}, 50, 1, 1)
	add(agent.ReportWritten{}, 50, 2, 2)
	require.NoError(t, s.RecordReportWriterHeartbeat(t.Context(), id(50)))
	add(agent.ReportWritten{Repeated: true}, 50, 2, 2)
	add(agent.ReportWritten{Repeated: true}, 50, 1, 1)
	add(agent.ReportWritten{}, 51, 1, 4)
	add(agent.ReportWritten{Lost: 3}, 50, 6, 8)
	add(agent.ReportWritten{}, 50, 7, 16)
	require.NoError(t, s.RemoveReportWriter(t.Context(), id(50)))
	add(agent.ReportWritten{Repeated: true}, 50, 7, 64)
	_, err := s.AddReports(t.Context(), write(52, 2, []agent.ReportSum{sumOf(1, 64, 1, 1)}, a.ID))
	require.ErrorIs(t, err, agent.ErrUnknownWriter)
	require.NotErrorIs(t, err, agent.ErrRejected)
	require.NoError(t, s.RecordReportWriterHeartbeat(t.Context(), id(52)))
	add(agent.ReportWritten{Lost: 1}, 52, 2, 32)
	require.Equal(t, int64(63), sum)
}

// A report is added to a subscription once, whoever writes it, and however often, also
// if a batch has it already.
func testReportsAddedOnce(t *testing.T, s Store) {
	a := openSubscription(t, s, opening("a", 1, agent.Position{}))
	b := openSubscription(t, s, opening("b", 2, agent.Position{}))
	older, newer := agent.Instance{}, agent.Instance{2} // that of zeros is one as any
	// A report has the bit of its sequence, those of the newer instance further up.
	reports := func(of agent.Instance, sequences ...int64) (sums []agent.ReportSum) {
		for _, sequence := range sequences {
			sum := sumOf(1, 1<<(int64(of[0])*16+sequence), 1+int64(of[0]), sequence)
			sum.Instance = of
			sums = append(sums, sum)
		}
		return sums
	}
	bits := func(sums []agent.ReportSum) (bits int64) {
		for i := range sums {
			bits |= sums[i].RxBytes
		}
		return bits
	}
	number := int64(0)
	delivered := func(want ...agent.ReportSum) {
		t.Helper()
		batch := deliver(t, s, step(a, 1, number, number))
		if len(want) == 0 {
			require.Nil(t, batch)
			return
		}
		number++
		require.Len(t, batch.Sums, 1)
		require.Equal(t, bits(want), batch.Sums[0].RxBytes)
		require.Equal(t, int64(len(want)), batch.Sums[0].Reports)
		require.Equal(t, want[len(want)-1].Data, batch.Sums[0].Data)
		require.Zero(t, batch.Sums[0].Instance)
	}
	w := write(50, 1, append(reports(older, 1, 2, 3), sumOf(2, 1, 1, 1)), a.ID, b.ID)
	require.Zero(t, addReports(t, s, w))
	w = write(51, 1, reports(older, 2, 3, 4), b.ID, a.ID)
	require.Equal(t, agent.ReportWritten{Found: 4}, addReports(t, s, w))
	require.Equal(t, agent.ReportWritten{Repeated: true, Found: 4}, addReports(t, s, w))
	batch := deliver(t, s, step(b, 2, 0, 0))
	require.Len(t, batch.Sums, 2)
	one := step(a, 1, 0, 0)
	one.Limit = 1
	require.Equal(t, batch.Sums[:1], deliver(t, s, one).Sums)
	require.Equal(t, bits(reports(older, 1, 2, 3, 4)), batch.Sums[0].RxBytes)
	require.Equal(t, int64(4), batch.Sums[0].Reports)
	require.Equal(t, []byte{1, 4}, batch.Sums[0].Data)
	require.Len(t, deliver(t, s, step(a, 1, 1, 1)).Sums, 1)
	number = 2

	require.Equal(t, agent.ReportWritten{Found: 2}, addReports(t, s, write(51, 2, reports(older, 1, 4), a.ID)))
	delivered()
	counts, err := s.CountReportSums(t.Context())
	require.NoError(t, err)
	require.Empty(t, counts)
	has, err := s.HasReportSums(t.Context(), a.ID)
	require.NoError(t, err)
	require.False(t, has)

	// Reports of a process that ended come late; those of the next one are not theirs.
	require.Equal(t, agent.ReportWritten{Found: 1}, addReports(t, s, write(50, 2, append(reports(older, 4, 5), reports(newer, 1)...), a.ID)))
	delivered(append(reports(older, 5), reports(newer, 1)...)...)
	require.Equal(t, agent.ReportWritten{Found: 2}, addReports(t, s, write(51, 3, reports(older, 4, 5, 6), a.ID)))
	delivered(reports(older, 6)...)
	require.Equal(t, agent.ReportWritten{Found: 2}, addReports(t, s, write(51, 4, append(reports(newer, 1, 2), reports(older, 6)...), a.ID)))
	delivered(reports(newer, 2)...)

	// Of what has no room only that counts as found which a sum has.
	addReports(t, s, write(50, 3, reports(newer, 3), a.ID))
	w = write(51, 5, append(reports(newer, 2, 3, 4), sumOf(2, 1, 1, 2)), a.ID)
	w.To[0].Full = true
	require.Equal(t, agent.ReportWritten{Found: 2, Refused: 1}, addReports(t, s, w))
	delivered(reports(newer, 3, 4)...)

	// Who reports nothing for long is forgotten: for a day, however short the retention is.
	_, err = s.ExpireSubscriptions(t.Context(), time.Hour)
	require.NoError(t, err)
	require.Zero(t, addReports(t, s, write(50, 4, reports(newer, 4), a.ID)))
	recent := reports(newer, 5)
	recent[0].ReceivedAt = time.Now().Add(-2 * time.Hour)
	require.Zero(t, addReports(t, s, write(50, 5, recent, a.ID)))
	delivered(reports(newer, 4, 5)...)
	_, err = s.ExpireSubscriptions(t.Context(), time.Hour)
	require.NoError(t, err)
	require.Equal(t, agent.ReportWritten{Found: 1}, addReports(t, s, write(50, 6, recent, a.ID)))
}

// Reports of any process of an agent are added once, however many began since. So many are
// known: then the oldest is forgotten.
func testReportsOfManyInstances(t *testing.T, s Store) {
	const known = 65
	a := openSubscription(t, s, opening("a", 1, agent.Position{}))
	b := openSubscription(t, s, opening("b", 2, agent.Position{}))
	report := func(instance, epoch, sequence int64) agent.ReportSum {
		sum := sumOf(1, 1, epoch, sequence)
		sum.Instance = agent.Instance{0: byte(instance), 1: 1}
		return sum
	}
	writes := int64(0)
	add := func(want agent.ReportWritten, sums ...agent.ReportSum) {
		t.Helper()
		writes++
		require.Equal(t, want, addReports(t, s, write(50, writes, sums, a.ID, b.ID)))
	}
	for n := int64(1); n <= 5; n++ { // one in a write, then several in one
		add(agent.ReportWritten{}, report(n, n, 1), report(n, n, 2))
	}
	add(agent.ReportWritten{}, report(6, 6, 1), report(7, 7, 1), report(7, 7, 2), report(8, 8, 1))
	sum := int64(14)
	for n := int64(1); n <= 7; n++ {
		// Another replica has both, and one that nobody has written.
		found := int64(4)
		if n == 6 {
			found = 2
		}
		add(agent.ReportWritten{Found: found}, report(n, n, 1), report(n, n, 2), report(n, n, 3))
		add(agent.ReportWritten{Found: 4}, report(n, n, 2), report(n, n, 3))
		sum += 3 - found/2
	}
	add(agent.ReportWritten{Found: 2}, report(8, 8, 1), report(8, 8, 2))
	sum++
	batch := deliver(t, s, step(a, 1, 0, 0))
	require.Equal(t, []int64{sum, sum}, []int64{batch.Sums[0].Reports, batch.Sums[0].RxBytes})
	require.Equal(t, []byte{8, 2}, batch.Sums[0].Data)
	require.Equal(t, batch.Sums, deliver(t, s, step(b, 2, 0, 0)).Sums)
	add(agent.ReportWritten{Found: 2}, report(1, 1, 3))
	require.Nil(t, deliver(t, s, step(a, 1, 1, 1)), "a batch had it")

	// What has no room changes nothing.
	full := write(50, writes+1, []agent.ReportSum{report(9, 9, 1)}, a.ID)
	full.To[0].Full = true
	require.Equal(t, agent.ReportWritten{Refused: 1}, addReports(t, s, full))
	writes++
	add(agent.ReportWritten{}, report(9, 9, 1))

	for n := int64(10); n <= known; n++ {
		add(agent.ReportWritten{}, report(n, n, 1))
	}
	add(agent.ReportWritten{Found: 4}, report(1, 1, 3), report(known, known, 1))
	add(agent.ReportWritten{}, report(known+1, known+1, 1))
	add(agent.ReportWritten{Found: 4}, report(2, 2, 3), report(known+1, known+1, 1))
	add(agent.ReportWritten{}, report(1, 1, 1))
}

func testReportsRefused(t *testing.T, s Store) {
	a := openSubscription(t, s, opening("a", 1, agent.Position{}))
	b := openSubscription(t, s, opening("b", 2, agent.Position{}))
	addReports(t, s, write(50, 1, []agent.ReportSum{sumOf(1, 1, 1, 1)}, a.ID))
	w := write(50, 2, []agent.ReportSum{sumOf(1, 2, 1, 2), sumOf(2, 4, 1, 1), sumOf(3, 4, 1, 1)}, a.ID, b.ID, 999)
	w.To[0].Full = true
	w.Sums[1].Reports = 5
	require.Equal(t, agent.ReportWritten{Refused: 6, Removed: 7}, addReports(t, s, w))
	batch := deliver(t, s, step(a, 1, 0, 0))
	require.Len(t, batch.Sums, 1)
	require.Equal(t, int64(3), batch.Sums[0].RxBytes)
	require.Len(t, deliver(t, s, step(b, 2, 0, 0)).Sums, 3)
	// The answer was lost.
	require.Equal(t, agent.ReportWritten{Repeated: true, Refused: 6, Removed: 7}, addReports(t, s, w))
	require.NoError(t, s.RecordReportWriterHeartbeat(t.Context(), id(50)))
	require.Equal(t, agent.ReportWritten{Repeated: true, Refused: 6, Removed: 7}, addReports(t, s, w))
	w.Sequence, w.To = 3, w.To[1:2]
	for i := range w.Sums {
		w.Sums[i].Order.Sequence += 10
	}
	require.Zero(t, addReports(t, s, w))
	require.Equal(t, agent.ReportWritten{Repeated: true}, addReports(t, s, w))
	w.Sequence, w.To = 9, []agent.ReportTarget{{Subscription: 999}}
	require.Equal(t, agent.ReportWritten{Lost: 5, Removed: 7}, addReports(t, s, w))
	require.Equal(t, agent.ReportWritten{Repeated: true, Removed: 7}, addReports(t, s, w))
	w.Sequence, w.To = 12, nil
	require.Equal(t, agent.ReportWritten{Lost: 2}, addReports(t, s, w))
	require.Equal(t, agent.ReportWritten{Repeated: true}, addReports(t, s, w))
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
	require.Equal(t, second, openSubscription(t, s, opening("a", 4, positionOf(a.Incarnation+1, 2))).Unacked, "another incarnation covers nothing")
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

// The database is older than what the watcher has processed: numbers would be given
// twice, so they are of another incarnation.
func testSubscriptionRestored(t *testing.T, s Store) {
	a := openSubscription(t, s, opening("a", 1, agent.Position{}))
	addReports(t, s, write(50, 1, []agent.ReportSum{sumOf(1, 1, 1, 1)}, a.ID))
	require.NotNil(t, deliver(t, s, step(a, 1, 0, 0)))
	opened := openSubscription(t, s, opening("a", 2, agent.Position{Incarnation: a.Incarnation, Number: 5}))
	require.True(t, opened.Restored)
	require.Equal(t, int64(200), opened.Incarnation)
	require.Nil(t, opened.Unacked, "it was processed")
	_, err := s.DeliverReports(t.Context(), step(a, 2, 1, 1))
	require.ErrorIs(t, err, agent.ErrSuperseded)
	addReports(t, s, write(50, 2, []agent.ReportSum{sumOf(1, 2, 1, 2)}, a.ID))
	batch := deliver(t, s, step(opened, 2, opened.Number, opened.Number))
	require.Equal(t, int64(2), batch.Sums[0].RxBytes)
	again := openSubscription(t, s, opening("a", 3, agent.Position{Incarnation: a.Incarnation, Number: 5}))
	require.False(t, again.Restored)
	require.Equal(t, batch, again.Unacked)
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
