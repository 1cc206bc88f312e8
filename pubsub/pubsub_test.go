package pubsub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/coder/agentstatsd/internal/postgrestest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(postgrestest.Main(m))
}

func newMemory(t testing.TB) *Memory {
	m, err := NewMemory(prometheus.NewRegistry())
	require.NoError(t, err)
	return m
}

func TestMemory(t *testing.T) {
	testContract(t, func(t testing.TB) Engine { return newMemory(t) })
}

func TestMemoryMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	m, err := NewMemory(reg)
	require.NoError(t, err)
	entered, leave := make(chan struct{}), make(chan struct{})
	slow := newReceived()
	cancel, err := m.Subscribe("a", func(payload []byte) {
		if slow.add(payload); string(payload) == "first" {
			close(entered)
			<-leave
		}
	})
	require.NoError(t, err)
	publish(t, m, "a", "first")
	<-entered
	// The second overflow drops one message less: one place is for the notice.
	for range queueLength + 1 + queueLength {
		publish(t, m, "a", "x")
	}
	close(leave)
	slow.waitFor("nil")
	publish(t, m, "a", "last")
	require.Equal(t, []string{"first", "nil", "last"}, slow.waitFor("last"))
	require.Error(t, m.Publish(t.Context(), "a", nil))
	require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(fmt.Sprintf(`
# HELP agentstatsd_pubsub_connected 1 while messages can arrive, otherwise 0.
# TYPE agentstatsd_pubsub_connected gauge
agentstatsd_pubsub_connected 1
# HELP agentstatsd_pubsub_dropped_messages_total Messages that a subscriber did not get.
# TYPE agentstatsd_pubsub_dropped_messages_total counter
agentstatsd_pubsub_dropped_messages_total{reason="slow_connection"} 0
agentstatsd_pubsub_dropped_messages_total{reason="slow_subscriber"} %d
# HELP agentstatsd_pubsub_overflows_total Times that a slow subscriber was notified to resynchronise, as its queue was full.
# TYPE agentstatsd_pubsub_overflows_total counter
agentstatsd_pubsub_overflows_total 2
# HELP agentstatsd_pubsub_publish_errors_total Messages that could not be published, or may not have been.
# TYPE agentstatsd_pubsub_publish_errors_total counter
agentstatsd_pubsub_publish_errors_total 1
# HELP agentstatsd_pubsub_published_messages_total Messages published.
# TYPE agentstatsd_pubsub_published_messages_total counter
agentstatsd_pubsub_published_messages_total %d
# HELP agentstatsd_pubsub_reconnects_total Times that the connection on which messages arrive was lost and made anew.
# TYPE agentstatsd_pubsub_reconnects_total counter
agentstatsd_pubsub_reconnects_total 0
# HELP agentstatsd_pubsub_subscribers Subscriptions that exist now.
# TYPE agentstatsd_pubsub_subscribers gauge
agentstatsd_pubsub_subscribers 1
`, 2*queueLength+1, 2*queueLength+3)),
		"agentstatsd_pubsub_connected", "agentstatsd_pubsub_dropped_messages_total", "agentstatsd_pubsub_overflows_total",
		"agentstatsd_pubsub_publish_errors_total", "agentstatsd_pubsub_published_messages_total",
		"agentstatsd_pubsub_reconnects_total", "agentstatsd_pubsub_subscribers"))
	require.Equal(t, 8+2, testutil.CollectAndCount(reg), "and two histograms")
	cancel()
	require.Zero(t, testutil.ToFloat64(m.metrics.subscribers))
	require.Empty(t, m.channels)

	families, err := reg.Gather()
	require.NoError(t, err)
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	require.NoError(t, err)
	require.Empty(t, problems)
	_, err = NewMemory(reg)
	require.ErrorContains(t, err, "pubsub: register metrics: duplicate metrics collector")
}

func ids(n int) []uuid.UUID {
	out := make([]uuid.UUID, n)
	for i := range out {
		out[i] = uuid.UUID{0: byte(i >> 8), 1: byte(i), 15: 0xff}
	}
	return out
}

// testMetadata is part of the contract: it shows that a full message fits.
func testMetadata(t *testing.T, m *Metadata) {
	changed := make(chan []uuid.UUID, 10)
	cancel, err := m.SubscribeMetadata(func(ids []uuid.UUID) { changed <- ids })
	require.NoError(t, err)
	t.Cleanup(cancel)

	want := ids(2*maxMetadataIDs + 1)
	sent := append(slices.Clone(want), want[0], want[maxMetadataIDs])
	slices.Reverse(sent)
	require.NoError(t, m.PublishMetadata(t.Context(), sent))
	require.NoError(t, m.PublishMetadata(t.Context(), nil))
	for part := range slices.Chunk(want, maxMetadataIDs) {
		require.Equal(t, part, <-changed)
	}
	require.Empty(t, changed)
}

// The payload is that of spec/wire.md.
func TestMetadataPayload(t *testing.T) {
	payload := appendMetadata(nil, []uuid.UUID{
		uuid.MustParse("9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d"),
		uuid.MustParse("fbefbefb-efbe-fbef-befb-efbefbefbeff"),
	})
	require.Equal(t, "mx3rTTt9S62b3SsNez3LbQ"+"++++++++++++++++++++/w", string(payload))
	require.Len(t, appendMetadata(nil, ids(maxMetadataIDs)), 7964)
	require.Equal(t, "workspace_agent_metadata_batch", MetadataChannel)
	require.Equal(t, 362, maxMetadataIDs)
}

func TestMetadataMalformed(t *testing.T) {
	good := string(appendMetadata(nil, ids(2)))
	for name, payload := range map[string]string{
		"cut":           good[:43],
		"other letters": strings.Replace(good, "A", "-", 1),
		"line break":    "\n\n" + good[2:],
		"padding":       good[:20] + "==",
		"trailing bits": good[:21] + "B",
		"too many ids":  strings.Repeat(good[:22], maxMetadataIDs+1),
		"JSON":          `{"keys": ["cpu", "ram"]}`,
	} {
		_, ok := parseMetadata([]byte(payload))
		require.False(t, ok, name)
	}
	_, ok := parseMetadata(nil)
	require.False(t, ok)

	// Such a message counts as a missed one, and the next one is read again.
	memory := newMemory(t)
	changed := make(chan []uuid.UUID, 2)
	cancel, err := NewMetadata(memory).SubscribeMetadata(func(ids []uuid.UUID) { changed <- ids })
	require.NoError(t, err)
	t.Cleanup(cancel)
	publish(t, memory, MetadataChannel, good[:43])
	publish(t, memory, MetadataChannel, good)
	require.Nil(t, <-changed)
	require.Equal(t, ids(2), <-changed)
}

type broken struct{ calls int }

var errBroken = errors.New("broken")

func (b *broken) Publish(context.Context, string, []byte) error {
	if b.calls++; b.calls == 1 {
		return errBroken
	}
	return nil
}

func (b *broken) Subscribe(string, func([]byte)) (func(), error) { return nil, errBroken }

func TestMetadataErrors(t *testing.T) {
	engine := &broken{}
	m := NewMetadata(engine)
	err := m.PublishMetadata(t.Context(), ids(maxMetadataIDs+1))
	require.ErrorIs(t, err, errBroken)
	require.Equal(t, 2, engine.calls, "the second message is tried all the same")
	_, err = m.SubscribeMetadata(func([]uuid.UUID) {})
	require.ErrorIs(t, err, errBroken)
}

func FuzzParseMetadata(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(appendMetadata(nil, ids(3)))
	f.Add([]byte("AAAAAAAAAAAAAAAAAAAA\r\n"))
	f.Add([]byte("AAAAAAAAAAAAAAAAAAAA=="))
	f.Fuzz(func(t *testing.T, payload []byte) {
		ids, ok := parseMetadata(payload)
		if !ok {
			return
		}
		require.Len(t, payload, idText*len(ids))
		require.True(t, bytes.Equal(payload, appendMetadata(nil, ids)), "each value has one text")
	})
}

func BenchmarkPublishMetadata(b *testing.B) {
	memory := newMemory(b)
	m := NewMetadata(memory)
	for range 10 {
		cancel, err := m.SubscribeMetadata(func([]uuid.UUID) {})
		require.NoError(b, err)
		b.Cleanup(cancel)
	}
	agents := ids(500)
	b.ReportAllocs()
	for b.Loop() {
		require.NoError(b, m.PublishMetadata(b.Context(), agents))
	}
}
