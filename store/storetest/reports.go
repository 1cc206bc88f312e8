package storetest

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

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
