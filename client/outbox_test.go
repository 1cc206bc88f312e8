package client

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

var anyLimits = newLimits(nil)

// sendAll takes all requests and returns them.
func sendAll(o *outbox) []*agentstatsv1.ConnectRequest {
	var sent []*agentstatsv1.ConnectRequest
	for {
		req := o.next(anyLimits, time.Unix(0, 0))
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

func put(t *testing.T, o *outbox, key, value string) {
	t.Helper()
	require.NoError(t, o.putMetadata(Metadata{Key: key, Value: value}))
}

// After a crash of the service, an ack in the new session covers sequences of
// lost requests: what these carried must not be taken as durable.
func TestOutboxAckDoesNotSettleWhatWasLost(t *testing.T) {
	var o outbox
	put(t, &o, "a", "1")
	sendAll(&o)
	require.Empty(t, o.resume(&agentstatsv1.Resume{}))
	o.lifecycle.put(lifecycle{state: agentstatsv1.Lifecycle_STATE_READY})
	lifecycle := o.next(anyLimits, time.Time{})
	require.Equal(t, int64(2), lifecycle.GetSequence())

	stored, _ := o.ack(2, 2)
	require.Empty(t, stored)
	require.Equal(t, []string{"a=1"}, keysOf(sendAll(&o)))
	stored, _ = o.ack(3, 3)
	require.Equal(t, []Metadata{{Key: "a", Value: "1"}}, stored)
	require.True(t, o.idle())
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
			var o outbox
			put(t, &o, "a", "1")
			sendAll(&o)
			put(t, &o, "b", "1")
			sendAll(&o)
			put(t, &o, "a", "2")
			sendAll(&o)
			put(t, &o, "c", "1")
			require.ElementsMatch(t, test.stored, o.resume(&agentstatsv1.Resume{ReceivedSequence: test.received, DurableSequence: test.durable}))
			sent := sendAll(&o)
			require.Equal(t, test.resent, keysOf(sent))
			for _, req := range sent {
				require.Greater(t, req.GetSequence(), int64(3))
			}
			o.ack(o.sequence, o.sequence)
			require.True(t, o.idle())
			require.Equal(t, int64(4), o.counts.MetadataDurable)
		})
	}
}

// Of a key whose values change faster than they are written, the sent one is
// acked when it is durable.
func TestOutboxMetadataKeepsASentValue(t *testing.T) {
	var o outbox
	put(t, &o, "a", "1")
	sendAll(&o)
	for i := 2; i < 5; i++ {
		put(t, &o, "a", strconv.Itoa(i))
		sendAll(&o)
	}
	require.Len(t, o.metadata.keys["a"], 2)
	stored, _ := o.ack(4, 3)
	require.Equal(t, []Metadata{{Key: "a", Value: "1"}}, stored)
	stored, _ = o.ack(4, 4)
	require.Equal(t, []Metadata{{Key: "a", Value: "4"}}, stored)
	require.Equal(t, int64(4), o.counts.MetadataDurable)
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
			var o outbox
			put(t, &o, "a", "1")
			sendAll(&o)
			put(t, &o, "a", "2")
			sendAll(&o)
			o.refusal(&agentstatsv1.Refusal{Sequence: 1, Code: test.code, Names: []string{"a", "unknown"}, Count: 1})
			stored, _ := o.ack(2, 2)
			require.Equal(t, test.stored, stored)
			require.Equal(t, test.refused, o.counts.MetadataRefused)
			require.True(t, o.idle())
		})
	}
	var o outbox
	put(t, &o, "a", "1")
	sendAll(&o)
	o.refusal(&agentstatsv1.Refusal{Sequence: 9, Code: agentstatsv1.RefusalCode_REFUSAL_CODE_INVALID, Names: []string{"a"}, Count: 1})
	require.False(t, o.idle(), "a sample of the same name was refused, not the key")
}

// A service that knows more of the instance than it can know does no harm.
func TestOutboxResumeAhead(t *testing.T) {
	var o outbox
	o.resume(&agentstatsv1.Resume{ReceivedSequence: 100, DurableSequence: 50})
	put(t, &o, "a", "1")
	require.Equal(t, int64(101), sendAll(&o)[0].GetSequence())
}

func TestOutboxMetadataParts(t *testing.T) {
	sizes := func(l limits, entries ...Metadata) []int {
		var o outbox
		for _, m := range entries {
			require.NoError(t, o.putMetadata(m))
		}
		var sizes []int
		for {
			req := o.next(l, time.Time{})
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
	require.Equal(t, []int{10, 10, 10, 10}, sizes(limits{message: 1 << 20, reportKeys: 1000}, long...), "bytes of keys")
	require.Equal(t, []int{4, 4, 4, 4, 4, 4, 4, 4, 4, 4}, sizes(limits{message: 10000, reportKeys: 6144}, large...), "bytes of the message")
	require.Equal(t, []int{1, 1}, sizes(limits{message: 100, reportKeys: 10}, large[:2]...), "one is always sent")
}

func TestOutboxGoodbyeComesLast(t *testing.T) {
	var o outbox
	for range maxInFlight + 1 {
		o.putStats(&agentstatsv1.Stats{})
		sendAll(&o)
	}
	o.goodbye.put(struct{}{})
	require.Empty(t, sendAll(&o), "a report waits")
	o.ack(1, 1)
	sent := sendAll(&o)
	require.Len(t, sent, 2)
	require.NotNil(t, sent[0].GetStats())
	require.NotNil(t, sent[1].GetGoodbye())
	require.Equal(t, "16 reports, the goodbye", o.describePending())
	put(t, &o, "late", "1")
	require.Empty(t, sendAll(&o), "nothing follows")

	o.resume(&agentstatsv1.Resume{})
	sent = sendAll(&o)
	require.Len(t, sent, 3)
	require.NotNil(t, sent[2].GetGoodbye(), "it is said again in a new session")
}

// The newest report is kept only as long as it may have to be sent again.
func TestOutboxKeepsTheNewestReport(t *testing.T) {
	var o outbox
	o.putStats(&agentstatsv1.Stats{RxBytes: 1, ConnectionCount: 1})
	sendAll(&o)
	o.putStats(&agentstatsv1.Stats{RxBytes: 2, ConnectionCount: 2, TxPackets: 5})
	sendAll(&o)
	o.resume(&agentstatsv1.Resume{})
	sent := sendAll(&o)
	require.Len(t, sent, 1)
	require.Equal(t, int64(3), sent[0].GetStats().GetRxBytes())
	require.Equal(t, int64(2), sent[0].GetStats().GetConnectionCount())
	require.Equal(t, int64(5), sent[0].GetStats().GetTxPackets())
	o.ack(3, 3)
	require.Nil(t, o.stats.newest)
	require.Equal(t, int64(2), o.counts.ReportsReceived)
	o.resume(&agentstatsv1.Resume{ReceivedSequence: 3, DurableSequence: 3})
	require.Empty(t, sendAll(&o))
}

// A summary of refusals says of none of its values what became of it: all are sent
// again, and none is taken for durable before.
func TestOutboxSummaryOfRefusals(t *testing.T) {
	var o outbox
	for _, key := range []string{"a", "b", "c"} {
		require.NoError(t, o.putMetadata(Metadata{Key: key, Value: "1"}))
		sendAll(&o) // requests 1, 2 and 3
	}
	require.NoError(t, o.putMetadata(Metadata{Key: "b", Value: "2"}))
	sendAll(&o) // 4, of a key whose older value is in doubt
	o.refusal(&agentstatsv1.Refusal{FirstSequence: 1, Sequence: 2, Code: agentstatsv1.RefusalCode_REFUSAL_CODE_STORE, Count: 2})
	stored, _ := o.ack(4, 4)
	require.ElementsMatch(t, []Metadata{{Key: "b", Value: "2"}, {Key: "c", Value: "1"}}, stored)
	sent := sendAll(&o)
	require.Len(t, sent, 1)
	require.EqualValues(t, 5, sent[0].GetSequence())
	require.Equal(t, "a", sent[0].GetMetadata().GetMetadata()[0].GetKey())
	require.Zero(t, o.counts.Refused, "it is counted when it is named")
	require.EqualValues(t, 4, o.confirmed)
	o.refusal(&agentstatsv1.Refusal{Sequence: 5, Names: []string{"a"}, Count: 1})
	stored, _ = o.ack(5, 5)
	require.Empty(t, stored)
	require.EqualValues(t, 1, o.counts.MetadataRefused)
}

// A refusal names the start of a long key.
func TestOutboxRefusalOfALongKey(t *testing.T) {
	var o outbox
	long, other := strings.Repeat("\u20ac", 100), strings.Repeat("y", 300)
	require.NoError(t, o.putMetadata(Metadata{Key: long, Value: "1"}))
	require.NoError(t, o.putMetadata(Metadata{Key: other, Value: "1"}))
	require.NoError(t, o.putMetadata(Metadata{Key: "y", Value: "1"}))
	sendAll(&o)
	o.refusal(&agentstatsv1.Refusal{Sequence: 1, Names: []string{long[:198], other[:200]}, Count: 2})
	stored, _ := o.ack(1, 1)
	require.Equal(t, []Metadata{{Key: "y", Value: "1"}}, stored)
}

func TestDeltasSaturate(t *testing.T) {
	const most = 1<<63 - 1
	d := deltas{rxBytes: most - 1}
	d.add(deltas{rxBytes: 5, txBytes: 1})
	require.Equal(t, deltas{rxBytes: most, txBytes: 1}, d)
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

func TestBackoffCeiling(t *testing.T) {
	for _, test := range []struct {
		backoff Backoff
		want    []int
	}{
		{Backoff{}, []int{1, 2, 4, 8, 16, 30, 30}},
		{Backoff{Min: 10 * time.Second}, []int{10, 20, 30, 30}},
		{Backoff{Min: time.Minute}, []int{60, 60}},
		{Backoff{Min: 3 * time.Second, Max: 2 * time.Second}, []int{2, 2}},
	} {
		for attempt, seconds := range test.want {
			require.Equal(t, time.Duration(seconds)*time.Second, test.backoff.withDefaults().ceiling(attempt), "%v %d", test.backoff, attempt)
		}
		require.Equal(t, test.backoff.withDefaults().Max, test.backoff.withDefaults().ceiling(1<<30))
	}
	b := Backoff{}.withDefaults()
	least, most := time.Hour, time.Duration(0)
	for range 1000 {
		wait := b.wait(3)
		require.LessOrEqual(t, wait, 8*time.Second)
		least, most = min(least, wait), max(most, wait)
	}
	require.Less(t, least, time.Second, "full jitter")
	require.Greater(t, most, 7*time.Second)
}

func TestStatementOfApps(t *testing.T) {
	var o outbox
	require.NoError(t, o.putAppHealth(uuid.UUID{1}, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY))
	require.NoError(t, o.putAppHealth(uuid.UUID{2}, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY))
	require.Len(t, sendAll(&o)[0].GetAppHealth().GetUpdates(), 2)
	require.NoError(t, o.putAppHealth(uuid.UUID{2}, agentstatsv1.AppHealth_APP_HEALTH_UNHEALTHY))
	sent := sendAll(&o)
	require.Len(t, sent[0].GetAppHealth().GetUpdates(), 1, "only what changed")
	o.ack(1, 1)
	require.Equal(t, 1, o.pendingStates())
	o.ack(2, 2)
	require.Zero(t, o.pendingStates())
	o.resume(&agentstatsv1.Resume{ReceivedSequence: 2, DurableSequence: 2})
	require.Equal(t, 2, o.pendingStates())
	require.Len(t, sendAll(&o)[0].GetAppHealth().GetUpdates(), 2, "a new session gets all")
}

func TestSized(t *testing.T) {
	lengths := func(messages []*agentstatsv1.Workspace) []int {
		var lengths []int
		var all []*agentstatsv1.Workspace
		for part := range sized(messages) {
			lengths = append(lengths, len(part))
			all = append(all, part...)
		}
		require.Equal(t, len(messages), len(all))
		return lengths
	}
	workspaces := func(n, bytes int) []*agentstatsv1.Workspace {
		all := make([]*agentstatsv1.Workspace, n)
		for i := range all {
			all[i] = &agentstatsv1.Workspace{Name: strings.Repeat("n", bytes)}
		}
		return all
	}
	require.Empty(t, lengths(nil))
	require.Equal(t, []int{1000, 1000, 1}, lengths(workspaces(2001, 10)), "by number")
	require.Equal(t, []int{25, 25, 10}, lengths(workspaces(60, 10<<10)), "by bytes")
	require.Equal(t, []int{1, 1}, lengths(workspaces(2, 1<<20)), "one is always sent")
}
