package pubsub

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/postgrestest"
)

// Flushes of 500 rows of as many agents notify by two messages each, at rates of
// deployments. Measured are the time until a subscriber has both, and the CPU time of
// this process, which publishes and listens, for a flush. Run it with -benchtime 30x.
func BenchmarkFlushes(b *testing.B) {
	for name, open := range map[string]func(testing.TB) PubSub{
		"NOTIFY": func(tb testing.TB) PubSub {
			return openPostgres(tb, postgrestest.Start(tb, postgrestest.Durable()).URL())
		},
		"NATS": func(tb testing.TB) PubSub { return openNATS(tb) },
	} {
		for _, perSecond := range []int{1, 10, 100} {
			b.Run(fmt.Sprintf("%s/%dps", name, perSecond), func(b *testing.B) { benchmarkFlushes(b, open(b), perSecond) })
		}
	}
}

func benchmarkFlushes(b *testing.B, ps PubSub, perSecond int) {
	metadata := NewMetadata(ps)
	arrived := make(chan int, 2)
	cancel, err := metadata.SubscribeMetadata(func(ids []uuid.UUID) { arrived <- len(ids) })
	require.NoError(b, err)
	defer cancel()
	agents := ids(500)
	ticker := time.NewTicker(time.Second / time.Duration(perSecond))
	defer ticker.Stop()
	var took []time.Duration
	before := cpu(b)
	for b.Loop() {
		<-ticker.C
		began := time.Now()
		require.NoError(b, metadata.PublishMetadata(b.Context(), agents))
		for n := 0; n < len(agents); {
			n += <-arrived
		}
		took = append(took, time.Since(began))
	}
	spent := cpu(b) - before
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "us-median")
	b.ReportMetric(float64(took[len(took)*95/100].Microseconds()), "us-p95")
	b.ReportMetric(float64(spent.Microseconds())/float64(len(took)), "us-cpu/flush")
	b.ReportMetric(0, "ns/op") // that of the ticker
}

// cpu returns what this process has spent.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
