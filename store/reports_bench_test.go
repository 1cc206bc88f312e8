package store

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/postgrestest"
)

// BenchmarkReportsWAL compares what the watched reports of 10,000 agents write to
// PostgreSQL with what their metadata does. On one side each agent reports once in 30
// s, to one of three replicas. On the other each changes 10 keys in 10 s. Adding,
// moving, acking are all counted.
func BenchmarkReportsWAL(b *testing.B) {
	const agents, keys, seconds = 10_000, 10, 30
	url := postgrestest.Shared(b).CreateDatabase(b)
	s := openURL(b, Options{URL: url})
	conn := admin(b, url)
	ids := make([]agent.ID, agents)
	var c agent.Change
	for i := range ids {
		ids[i] = agent.ID{0: byte(i * 37), 1: byte(i >> 8), 2: byte(i)}
		c.Agents = append(c.Agents, registration(ids[i], id(100)))
	}
	apply(b, s, c)
	sub, err := s.OpenSubscription(b.Context(), reportOpening("a", 1))
	require.NoError(b, err)
	for replica := range byte(3) {
		require.NoError(b, s.RecordReportWriterHeartbeat(b.Context(), id(50+replica)))
	}

	type cost struct {
		wal, rows float64
		took      time.Duration
	}
	// rows are all versions of rows that were written or removed.
	written := func() (rows float64) {
		execute(b, conn, "SELECT pg_stat_force_next_flush()")
		return scalar[float64](b, conn, "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)::float8 FROM pg_stat_user_tables")
	}
	const flush = 11 * time.Second // an idle connection publishes its statistics within 10 s
	measure := func(f func()) (cost cost) {
		time.Sleep(flush)
		lsn, rows, began := scalar[string](b, conn, "SELECT pg_current_wal_lsn()::text"), written(), time.Now()
		f()
		cost.took = time.Since(began)
		cost.wal = scalar[float64](b, conn, "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), $1::pg_lsn)::float8", lsn)
		time.Sleep(flush)
		cost.rows = written() - rows
		return cost
	}
	epoch := int64(1)
	metadata := func() {
		epoch++
		for first := 0; first < agents; first += 50 {
			var rows []agent.Metadata
			for _, id := range ids[first : first+50] {
				for key := range keys {
					rows = append(rows, row(id, fmt.Sprint("key", key), fmt.Sprint("a value of some bytes ", epoch), epoch, 1))
				}
			}
			upsert(b, s, rows)
		}
	}
	d := agent.Delivery{Subscription: sub.ID, Incarnation: sub.Incarnation, Stream: id(1), Lease: time.Hour, Bytes: 1 << 20}
	var sequences [3]int64
	watched := func() {
		for second := range seconds {
			now := ids[agents*second/seconds : agents*(second+1)/seconds]
			for replica := range 3 {
				sequences[replica]++
				w := agent.ReportWrite{Writer: id(byte(50 + replica)), Sequence: sequences[replica], To: []agent.ReportTarget{{Subscription: sub.ID}}}
				for _, of := range now[len(now)*replica/3 : len(now)*(replica+1)/3] {
					w.Sums = append(w.Sums, agent.ReportSum{
						Agent: of, Workspace: of, Instance: agent.Instance(of), Order: agent.Order{Epoch: time.Now().UnixNano(), Sequence: sequences[replica]}, Reports: 1,
						RxPackets: 1000, RxBytes: 100_000, TxPackets: 1000, TxBytes: 100_000,
						ReceivedAt: time.Now(), LastUsedAt: time.Now(), Data: make([]byte, 60),
					})
				}
				_, err := s.AddReports(b.Context(), w)
				require.NoError(b, err)
			}
			d.Limit, d.NextNonce = 500, rand.Int64()
			batch, err := s.DeliverReports(b.Context(), d)
			require.NoError(b, err)
			require.Len(b, batch.Sums, len(now))
			d.Number, d.Nonce, d.Acked, d.Limit = batch.Number, batch.Nonce, batch.Number, 0
			_, err = s.DeliverReports(b.Context(), d) // the ack
			require.NoError(b, err)
		}
	}
	metadata() // pages are written whole after a checkpoint, and rows inserted once
	watched()
	for b.Loop() {
		execute(b, conn, "CHECKPOINT")
		of, with := measure(metadata), measure(watched)
		perSecond := func(wal, in float64, unit string) { b.ReportMetric(wal/in, unit) }
		perSecond(of.wal/1000, 10, "metadata-KB/s")
		perSecond(with.wal/1000, seconds, "reports-KB/s")
		perSecond(of.rows, 10, "metadata-rows/s")
		perSecond(with.rows, seconds, "reports-rows/s")
		b.ReportMetric(100*(with.wal/seconds)/(of.wal/10), "%WAL")
		b.ReportMetric(100*(with.took.Seconds()/seconds)/(of.took.Seconds()/10), "%time")
	}
}

// BenchmarkExpiry removes a subscription that has 500,000 sums, call by call as reports
// does each minute.
func BenchmarkExpiry(b *testing.B) {
	const agents, page = 500_000, 5000
	for name, open := range map[string]func(testing.TB) *Store{"sqlite": openTemp, "postgres": openPostgresTemp} {
		b.Run(name, func(b *testing.B) {
			s := open(b)
			require.NoError(b, s.RecordReportWriterHeartbeat(b.Context(), id(50)))
			sequence := int64(0)
			for b.Loop() {
				b.StopTimer()
				opening := reportOpening("a", 1)
				opening.Lease = -time.Hour
				sub, err := s.OpenSubscription(b.Context(), opening)
				require.NoError(b, err)
				for first := 0; first < agents; first += page {
					sequence++
					w := agent.ReportWrite{Writer: id(50), Sequence: sequence, To: []agent.ReportTarget{{Subscription: sub.ID}}}
					for n := first; n < first+page; n++ {
						w.Sums = append(w.Sums, agent.ReportSum{
							Agent: agent.ID{byte(n * 37), byte(n >> 8), byte(n), byte(n >> 16)}, Workspace: id(1), Reports: 1, Data: make([]byte, 60),
						})
					}
					_, err := s.AddReports(b.Context(), w)
					require.NoError(b, err)
				}
				b.StartTimer()
				calls, longest, began := 0, time.Duration(0), time.Now()
				for left := 1; left > 0; calls++ {
					call := time.Now()
					_, err := s.ExpireSubscriptions(b.Context(), time.Minute)
					require.NoError(b, err)
					longest = max(longest, time.Since(call))
					counts, err := s.CountReportSums(b.Context())
					require.NoError(b, err)
					left = len(counts)
				}
				b.ReportMetric(float64(calls), "calls")
				b.ReportMetric(longest.Seconds(), "s/longest-call")
				b.ReportMetric(time.Since(began).Seconds(), "s/all")
			}
		})
	}
}
