package outbox

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

var anyLimits = NewLimits(nil)

// sendAll takes all requests at once and returns them.
func sendAll(o *Outbox) []*agentstatsv1.ConnectRequest {
	o.Pace.waiting = 1
	var sent []*agentstatsv1.ConnectRequest
	for {
		req := o.Next(anyLimits, time.Unix(0, 0))
		if req == nil {
			return sent
		}
		sent = append(sent, proto.CloneOf(req))
	}
}

func keysOf(reqs []*agentstatsv1.ConnectRequest) []string {
	var keys []string
	for _, req := range reqs {
		for _, m := range req.GetMetadata().GetMetadata() {
			keys = append(keys, m.GetKey()+"="+m.GetResult().GetValue())
		}
	}
	return keys
}

func put(t *testing.T, o *Outbox, key, value string) {
	t.Helper()
	require.NoError(t, o.PutMetadata(Metadata{Key: key, Value: value}, time.Time{}))
}

// After a crash of the service, an ack in the new session covers sequences of lost
// requests. The values of these must not count as durable.
func TestOutboxAckDoesNotSettleWhatWasLost(t *testing.T) {
	var o Outbox
	put(t, &o, "a", "1")
	sendAll(&o)
	require.Empty(t, o.Resume(&agentstatsv1.Resume{}))
	stored, _ := o.Ack(1, 1)
	require.Empty(t, stored)
	sent := sendAll(&o)
	require.Equal(t, []string{"a=1"}, keysOf(sent))
	require.Equal(t, int64(2), sent[0].GetSequence())
	stored, _ = o.Ack(2, 2)
	require.Equal(t, []Metadata{{Key: "a", Value: "1"}}, stored)
	require.True(t, o.Idle())
}

func TestOutboxMetadataResume(t *testing.T) {
	for _, test := range []struct {
		name              string
		received, durable int64
		resent            []string
		stored            []Metadata
	}{
		{"all lost", 0, 0, []string{"b=1", "a=2", "c=1"}, nil},
		{"the first value received", 1, 0, []string{"b=1", "a=2", "c=1"}, nil},
		{"the first two received", 2, 0, []string{"a=2", "c=1"}, nil},
		{"the first durable", 2, 1, []string{"a=2", "c=1"}, []Metadata{{Key: "a", Value: "1"}}},
		{"all received", 3, 0, []string{"c=1"}, nil},
		{"all durable", 3, 3, []string{"c=1"}, []Metadata{{Key: "a", Value: "2"}, {Key: "b", Value: "1"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var o Outbox
			put(t, &o, "a", "1")
			sendAll(&o)
			put(t, &o, "b", "1")
			sendAll(&o)
			put(t, &o, "a", "2")
			sendAll(&o)
			put(t, &o, "c", "1")
			require.ElementsMatch(t, test.stored, o.Resume(&agentstatsv1.Resume{ReceivedSequence: test.received, DurableSequence: test.durable}))
			sent := sendAll(&o)
			require.Equal(t, test.resent, keysOf(sent))
			for _, req := range sent {
				require.Greater(t, req.GetSequence(), int64(3))
			}
			o.Ack(o.sequence, o.sequence)
			require.True(t, o.Idle())
			require.Equal(t, int64(4), o.Counts.MetadataDurable)
		})
	}
}

// Of a key whose values change faster than they are written, the sent one is
// acked when it is durable.
func TestOutboxMetadataKeepsASentValue(t *testing.T) {
	var o Outbox
	put(t, &o, "a", "1")
	sendAll(&o)
	for i := 2; i < 5; i++ {
		put(t, &o, "a", strconv.Itoa(i))
		sendAll(&o)
	}
	require.Len(t, o.metadata.keys["a"], 2)
	stored, _ := o.Ack(4, 3)
	require.Equal(t, []Metadata{{Key: "a", Value: "1"}}, stored)
	stored, _ = o.Ack(4, 4)
	require.Equal(t, []Metadata{{Key: "a", Value: "4"}}, stored)
	require.Equal(t, int64(4), o.Counts.MetadataDurable)
}

func TestOutboxRefusalByStore(t *testing.T) {
	for _, test := range []struct {
		code    agentstatsv1.RefusalCode
		stored  []Metadata
		refused int64
	}{
		// The row that was refused may have had the newer value.
		{agentstatsv1.RefusalCode_REFUSAL_CODE_STORE, nil, 2},
		{agentstatsv1.RefusalCode_REFUSAL_CODE_INVALID, []Metadata{{Key: "a", Value: "2"}}, 1},
	} {
		t.Run(test.code.String(), func(t *testing.T) {
			var o Outbox
			put(t, &o, "a", "1")
			sendAll(&o)
			put(t, &o, "a", "2")
			sendAll(&o)
			o.ApplyRefusal(&agentstatsv1.Refusal{Sequence: 1, Code: test.code, Names: []string{"a", "unknown"}, Count: 1})
			stored, _ := o.Ack(2, 2)
			require.Equal(t, test.stored, stored)
			require.Equal(t, test.refused, o.Counts.MetadataRefused)
			require.True(t, o.Idle())
		})
	}
	var o Outbox
	put(t, &o, "a", "1")
	sendAll(&o)
	o.ApplyRefusal(&agentstatsv1.Refusal{Sequence: 9, Code: agentstatsv1.RefusalCode_REFUSAL_CODE_INVALID, Names: []string{"a"}, Count: 1})
	require.False(t, o.Idle(), "a sample of the same name was refused, not the key")
}

// A service that knows more of the instance than it can know does no harm.
func TestOutboxResumeAhead(t *testing.T) {
	var o Outbox
	o.Resume(&agentstatsv1.Resume{ReceivedSequence: 100, DurableSequence: 50})
	put(t, &o, "a", "1")
	require.Equal(t, int64(101), sendAll(&o)[0].GetSequence())
}

func TestOutboxMetadataParts(t *testing.T) {
	sizes := func(l Limits, entries ...Metadata) []int {
		var o Outbox
		for _, m := range entries {
			require.NoError(t, o.PutMetadata(m, time.Time{}))
		}
		var sizes []int
		for {
			req := o.Next(l, time.Time{})
			if req == nil {
				return sizes
			}
			require.True(t, len(req.GetMetadata().GetMetadata()) == 1 || int64(proto.Size(req)) <= l.message, "%d bytes", proto.Size(req))
			sizes = append(sizes, len(req.GetMetadata().GetMetadata()))
		}
	}
	var many, long, large []Metadata
	for i := range 40 {
		many = append(many, Metadata{Key: strconv.Itoa(i)})
		long = append(long, Metadata{Key: fmt.Sprintf("%0100d", i)})
		large = append(large, Metadata{Key: strconv.Itoa(i), Value: strings.Repeat("v", 2000), Error: strings.Repeat("e", 100)})
	}
	require.Equal(t, []int{16, 16, 8}, sizes(anyLimits, many...), "a refusal names 16")
	require.Equal(t, []int{10, 10, 10, 10}, sizes(Limits{message: 1 << 20, reportKeys: 1000}, long...), "bytes of keys")
	require.Equal(t, []int{4, 4, 4, 4, 4, 4, 4, 4, 4, 4}, sizes(Limits{message: 10000, reportKeys: 6144}, large...), "bytes of the message")
	require.Equal(t, []int{1, 1}, sizes(Limits{message: 100, reportKeys: 10}, large[:2]...), "one is always sent")
}

func TestOutboxGoodbyeComesLast(t *testing.T) {
	var o Outbox
	for range maxInFlight + 1 {
		o.PutStats(&agentstatsv1.Stats{RxBytes: 1}, false, time.Time{})
		require.Len(t, sendAll(&o), 1)
	}
	o.goodbye.put(struct{}{}, time.Time{})
	require.Empty(t, sendAll(&o), "counts wait")
	o.Ack(1, 1)
	sent := sendAll(&o)
	require.Len(t, sent, 1)
	require.Equal(t, int64(1), sent[0].GetStats().GetRxBytes())
	require.NotNil(t, sent[0].GetGoodbye())
	require.True(t, sent[0].GetAckNow())
	require.Equal(t, "16 reports, the goodbye", o.DescribePending())
	put(t, &o, "late", "1")
	require.Empty(t, sendAll(&o), "nothing follows")

	o.Resume(&agentstatsv1.Resume{})
	sent = sendAll(&o)
	require.Len(t, sent, 17)
	require.NotNil(t, sent[16].GetGoodbye(), "it is said again in a new session")
	require.Equal(t, []string{"late=1"}, keysOf(sent[16:]))
}

// All that is due goes in one request, as far as there is room.
func TestOutboxSendsAllInOneRequest(t *testing.T) {
	fill := func() *Outbox {
		o := &Outbox{}
		put(t, o, "a", strings.Repeat("v", 1000))
		o.PutStats(&agentstatsv1.Stats{RxBytes: 1, Metrics: []*agentstatsv1.Stats_Metric{{Name: strings.Repeat("m", 1000)}}}, false, time.Time{})
		o.lifecycle.put(lifecycle{state: agentstatsv1.Lifecycle_STATE_READY}, time.Time{})
		require.NoError(t, o.PutAppHealth(uuid.UUID{1}, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY, time.Time{}))
		o.network.put(&agentstatsv1.Network{Regions: []*agentstatsv1.Network_Region{{Id: 1, Name: strings.Repeat("r", 1000)}}}, time.Time{})
		o.goodbye.put(struct{}{}, time.Time{})
		return o
	}
	sent := sendAll(fill())
	require.Len(t, sent, 1)
	require.Equal(t, int64(1), sent[0].GetSequence())
	require.NotNil(t, sent[0].GetLifecycle())
	require.NotNil(t, sent[0].GetAppHealth())
	require.NotNil(t, sent[0].GetNetwork())
	require.Len(t, sent[0].GetStats().GetMetrics(), 1)
	require.Equal(t, []string{"a"}, []string{sent[0].GetMetadata().GetMetadata()[0].GetKey()})
	require.NotNil(t, sent[0].GetGoodbye())
	require.True(t, sent[0].GetAckNow())

	for _, test := range []struct {
		limit    int64
		requests int
	}{{4000, 1}, {2500, 2}, {1500, 3}} {
		o := fill()
		o.Pace.waiting = 1
		var last *agentstatsv1.ConnectRequest
		n := 0
		for req := o.Next(Limits{message: test.limit, reportKeys: 6144}, time.Time{}); req != nil; req = o.Next(Limits{message: test.limit, reportKeys: 6144}, time.Time{}) {
			require.LessOrEqual(t, int64(proto.Size(req)), test.limit)
			require.False(t, last.GetAckNow(), "more follows")
			last = req
			n++
		}
		require.Equal(t, test.requests, n, "%d bytes", test.limit)
		require.NotNil(t, last.GetGoodbye())
		require.True(t, last.GetAckNow())
		require.Empty(t, o.TakeRefusals(), "nothing is dropped")
	}
}

// countsOf returns of each report its sequence, its bytes, and whether it is sent
// whole.
func countsOf(reqs []*agentstatsv1.ConnectRequest) (counts [][3]int64) {
	for _, req := range reqs {
		if req.GetStats() == nil {
			continue
		}
		whole := int64(1)
		if req.GetStatsSuperseded() {
			whole = 0
		}
		counts = append(counts, [3]int64{req.GetSequence(), req.GetStats().GetRxBytes(), whole})
	}
	return counts
}

// A report that was not acked is sent again under its own sequence with its own
// counts: the older ones without samples, the newest whole.
func TestOutboxResendsReports(t *testing.T) {
	report := func(bytes, connections int64) *agentstatsv1.Stats {
		return &agentstatsv1.Stats{
			RxBytes: bytes, TxPackets: 5 * bytes, ConnectionCount: connections, ConnectionsByProto: map[string]int64{"TCP": 1},
			SessionCounts: map[string]int64{"ssh": connections, "idle": 0}, SessionCountSsh: connections,
			Metrics: []*agentstatsv1.Stats_Metric{{Name: "m"}},
		}
	}
	var o Outbox
	o.PutStats(report(1, 1), false, time.Time{})
	sendAll(&o)
	o.PutStats(report(2, 2), false, time.Time{})
	sendAll(&o)
	put(t, &o, "a", "1")
	sendAll(&o)
	o.Resume(&agentstatsv1.Resume{})
	sent := sendAll(&o)
	require.Equal(t, [][3]int64{{1, 1, 0}, {2, 2, 1}}, countsOf(sent))
	require.Empty(t, cmp.Diff(&agentstatsv1.Stats{
		RxBytes: 1, TxPackets: 5, ConnectionCount: 1, SessionCounts: map[string]int64{"ssh": 1}, SessionCountSsh: 1,
	}, sent[0].GetStats(), protocmp.Transform()))
	require.Empty(t, cmp.Diff(report(2, 2), sent[1].GetStats(), protocmp.Transform()))
	require.Len(t, sent, 3)
	require.Equal(t, []string{"a=1"}, keysOf(sent[2:]))
	require.Equal(t, int64(4), sent[2].GetSequence())

	// The message of a report that was collected is another report's now.
	o.Resume(&agentstatsv1.Resume{ReceivedSequence: 1})
	o.PutStats(report(4, 0), true, time.Time{})
	require.Equal(t, [][3]int64{{2, 2, 0}, {5, 4, 1}}, countsOf(sendAll(&o)))

	o.Ack(5, 5)
	require.Nil(t, o.stats.newest)
	require.Equal(t, int64(3), o.Counts.ReportsReceived)
	o.Resume(&agentstatsv1.Resume{ReceivedSequence: 5, DurableSequence: 5})
	require.Empty(t, sendAll(&o))
}

// While the service acks nothing, memory is bounded: samples are sent on, counts stay
// here, and each arrives once.
func TestOutboxCarriesCounts(t *testing.T) {
	var o Outbox
	send := func() []*agentstatsv1.ConnectRequest {
		o.PutStats(&agentstatsv1.Stats{RxBytes: 1, Metrics: []*agentstatsv1.Stats_Metric{{Name: "m"}}}, false, time.Time{})
		return sendAll(&o)
	}
	for range maxInFlight {
		require.Equal(t, int64(1), send()[0].GetStats().GetRxBytes())
	}
	for range 1000 {
		sent := send()
		require.Len(t, sent, 1)
		require.Zero(t, sent[0].GetStats().GetRxBytes())
		require.Len(t, sent[0].GetStats().GetMetrics(), 1)
		require.True(t, sent[0].GetStatsUncounted())
	}
	require.Len(t, o.stats.inFlight, maxInFlight)
	require.Equal(t, "1016 reports", o.DescribePending())

	// In a new session the counts that were sent come first, then the newest samples.
	o.Resume(&agentstatsv1.Resume{ReceivedSequence: 2})
	sent := sendAll(&o)
	require.Len(t, sent, 15)
	require.Equal(t, [3]int64{3, 1, 0}, countsOf(sent)[0])
	require.Equal(t, [3]int64{16, 1, 0}, countsOf(sent)[13])
	require.Equal(t, [3]int64{1017, 1000, 1}, countsOf(sent)[14])
	for _, req := range sent {
		require.False(t, req.GetStatsUncounted())
	}

	require.Equal(t, int64(1), send()[0].GetStats().GetRxBytes(), "there is room for one more")
	require.Zero(t, send()[0].GetStats().GetRxBytes())
	o.Ack(3, 3)
	require.Equal(t, [][3]int64{{1020, 1, 1}}, countsOf(sendAll(&o)), "as soon as there is room")
	o.Ack(1020, 1020)
	require.True(t, o.Idle())
	require.Equal(t, o.Counts.Reports, o.Counts.ReportsReceived)
}

// Reports that merge have the connections of all.
func TestOutboxMergesReports(t *testing.T) {
	var o Outbox
	for _, connections := range []int64{3, 1} {
		o.PutStats(&agentstatsv1.Stats{RxBytes: 1, ConnectionCount: connections}, false, time.Time{})
	}
	sent := sendAll(&o)
	require.Len(t, sent, 1)
	require.Equal(t, int64(2), sent[0].GetStats().GetRxBytes())
	require.Equal(t, int64(3), sent[0].GetStats().GetConnectionCount())
	o.PutStats(&agentstatsv1.Stats{}, false, time.Time{})
	require.Zero(t, sendAll(&o)[0].GetStats().GetConnectionCount())
}

// A summary of refusals says of none of its values what became of it: all are sent
// again, and none is taken for durable before.
func TestOutboxSummaryOfRefusals(t *testing.T) {
	var o Outbox
	for _, key := range []string{"a", "b", "c"} {
		require.NoError(t, o.PutMetadata(Metadata{Key: key, Value: "1"}, time.Time{}))
		sendAll(&o) // requests 1, 2 and 3
	}
	require.NoError(t, o.PutMetadata(Metadata{Key: "b", Value: "2"}, time.Time{}))
	sendAll(&o) // 4, of a key whose older value is in doubt
	o.ApplyRefusal(&agentstatsv1.Refusal{FirstSequence: 1, Sequence: 2, Code: agentstatsv1.RefusalCode_REFUSAL_CODE_STORE, Count: 2})
	stored, _ := o.Ack(4, 4)
	require.ElementsMatch(t, []Metadata{{Key: "b", Value: "2"}, {Key: "c", Value: "1"}}, stored)
	sent := sendAll(&o)
	require.Len(t, sent, 1)
	require.EqualValues(t, 5, sent[0].GetSequence())
	require.Equal(t, "a", sent[0].GetMetadata().GetMetadata()[0].GetKey())
	require.Zero(t, o.Counts.Refused, "it is counted when it is named")
	require.EqualValues(t, 4, o.confirmed)
	o.ApplyRefusal(&agentstatsv1.Refusal{Sequence: 5, Names: []string{"a"}, Count: 1})
	stored, _ = o.Ack(5, 5)
	require.Empty(t, stored)
	require.EqualValues(t, 1, o.Counts.MetadataRefused)
}

// A refusal names the start of a long key.
func TestOutboxRefusalOfALongKey(t *testing.T) {
	var o Outbox
	long, other := strings.Repeat("\u20ac", 100), strings.Repeat("y", 300)
	require.NoError(t, o.PutMetadata(Metadata{Key: long, Value: "1"}, time.Time{}))
	require.NoError(t, o.PutMetadata(Metadata{Key: other, Value: "1"}, time.Time{}))
	require.NoError(t, o.PutMetadata(Metadata{Key: "y", Value: "1"}, time.Time{}))
	sendAll(&o)
	o.ApplyRefusal(&agentstatsv1.Refusal{Sequence: 1, Names: []string{long[:198], other[:200]}, Count: 2})
	stored, _ := o.Ack(1, 1)
	require.Equal(t, []Metadata{{Key: "y", Value: "1"}}, stored)
}

func TestDeltasSaturate(t *testing.T) {
	d := deltas{rxBytes: maxDelta - 1}
	d.add(deltas{rxBytes: 5, txBytes: 1})
	require.Equal(t, deltas{rxBytes: maxDelta, txBytes: 1}, d)
}

func TestCleanText(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"plain", "plain"},
		{"a\xff\xfeb", "a\uFFFDb"},
		{strings.Repeat("x", 5000), strings.Repeat("x", 2052)},
		{"x" + strings.Repeat("\u20ac", 1000), "x" + strings.Repeat("\u20ac", 683)},
		{strings.Repeat("\xf0\x9f\x98\x80", 600), strings.Repeat("\xf0\x9f\x98\x80", 513)},
	} {
		got := cleanText(test.in)
		require.Equal(t, test.want, got)
		if len(test.in) > 2048 {
			require.Greater(t, len(got), 2048, "the service sees that it was too long")
		}
	}
}

func TestStatementOfApps(t *testing.T) {
	var o Outbox
	require.NoError(t, o.PutAppHealth(uuid.UUID{1}, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY, time.Time{}))
	require.NoError(t, o.PutAppHealth(uuid.UUID{2}, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY, time.Time{}))
	require.Len(t, sendAll(&o)[0].GetAppHealth().GetUpdates(), 2)
	require.NoError(t, o.PutAppHealth(uuid.UUID{2}, agentstatsv1.AppHealth_APP_HEALTH_UNHEALTHY, time.Time{}))
	sent := sendAll(&o)
	require.Len(t, sent[0].GetAppHealth().GetUpdates(), 1, "only what changed")
	o.Ack(1, 1)
	require.Equal(t, 1, o.pendingStates())
	o.Ack(2, 2)
	require.Zero(t, o.pendingStates())
	o.Resume(&agentstatsv1.Resume{ReceivedSequence: 2, DurableSequence: 2})
	require.Equal(t, 2, o.pendingStates())
	require.Len(t, sendAll(&o)[0].GetAppHealth().GetUpdates(), 2, "a new session gets all")
}

// A relay says how long before its session it was given what it sends. Others say nothing.
func TestAges(t *testing.T) {
	at := time.UnixMilli
	for _, relay := range []bool{true, false} {
		o := Outbox{IsRelay: relay}
		healthy := agentstatsv1.AppHealth_APP_HEALTH_HEALTHY
		o.PutLifecycle(agentstatsv1.Lifecycle_STATE_READY, at(1), at(1000))
		o.PutNetwork(&agentstatsv1.Network{NodeId: 1}, at(2000))
		require.NoError(t, o.PutAppHealth(uuid.UUID{1}, healthy, at(3000)))
		require.NoError(t, o.PutMetadata(Metadata{Key: "a", Value: "1"}, at(4000)))
		require.Zero(t, o.BeginHello(at(5000)))
		require.NoError(t, o.PutMetadata(Metadata{Key: "b", Value: "1"}, at(5000)))
		require.NoError(t, o.PutMetadata(Metadata{Key: "a", Value: "2"}, at(4500)))
		require.NoError(t, o.PutAppHealth(uuid.UUID{2}, healthy, at(5500)))
		require.NoError(t, o.PutAppHealth(uuid.UUID{3}, healthy, at(4999)))
		sent := sendAll(&o)
		require.Len(t, sent, 1)
		var want *agentstatsv1.Ages
		if relay {
			want = &agentstatsv1.Ages{Lifecycle: 4_000_000, Network: 3_000_000, AppHealth: []int64{2_000_000, 0, 1000}, Metadata: []int64{500_000}}
		}
		require.Equal(t, []string{"a=2", "b=1"}, keysOf(sent))
		require.Empty(t, cmp.Diff(want, sent[0].GetAges(), protocmp.Transform()))

		// What is new since has no age.
		o.PutNetwork(&agentstatsv1.Network{NodeId: 2}, at(7000))
		require.Nil(t, sendAll(&o)[0].GetAges())
		o.BeginHello(at(8000))
		o.Resume(&agentstatsv1.Resume{ReceivedSequence: 1, DurableSequence: 1})
		if relay {
			want = &agentstatsv1.Ages{Network: 1_000_000}
		}
		require.Empty(t, cmp.Diff(want, sendAll(&o)[0].GetAges(), protocmp.Transform()))
	}
}
