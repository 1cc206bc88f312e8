package wire

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/grpcserver"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// testFrame returns a frame of a stream with the default limit.
func testFrame() Frame { return NewFrame(agent.ID{}, 1<<20) }

// checkFrame checks that data is read as the generated code decodes it, and
// returns whether it is plain. The report before it may be any.
func checkFrame(t require.TestingT, data []byte, before ...[]byte) (plain bool) {
	f := testFrame()
	for _, data := range before {
		require.NoError(t, f.UnmarshalMessage(mem.BufferSlice{mem.SliceBuffer(data)}))
		f.matchOwn()
		f.Release()
	}
	require.NoError(t, f.UnmarshalMessage(mem.BufferSlice{mem.SliceBuffer(data)}))
	defer f.Release()
	want := &agentstatsv1.ConnectRequest{}
	err := proto.Unmarshal(data, want)
	if err != nil {
		require.Equal(t, codes.InvalidArgument, status.Code(f.Refused))
		require.NotContains(t, f.Refused.Error(), "it does not decode", "where it is malformed was not found: %v", err)
		require.Equal(t, Frame{Size: len(data), Refused: f.Refused, encodings: f.encodings, limit: f.limit}, f)
		return false
	}
	if n, _ := agentRequests.Bytes(data, 1<<30); n > grpcserver.Expansion*f.limit && f.Refused != nil {
		require.Equal(t, codes.ResourceExhausted, status.Code(f.Refused))
		return false
	}
	require.NoError(t, f.Refused)
	require.Equal(t, want.GetSequence(), f.Sequence)
	require.Equal(t, want.GetAckNow(), f.AckNow)
	require.EqualValues(t, want.GetStatsAge(), int64(f.StatsAge))
	forStore := want.GetMetadata() != nil || want.GetLifecycle() != nil || want.GetAppHealth() != nil || want.GetNetwork() != nil
	require.Equal(t, forStore, f.ForStore())
	if f.Request != nil {
		require.Nil(t, f.Stats)
		require.Nil(t, f.metadata)
		require.Empty(t, cmp.Diff(want, f.Request, protocmp.Transform(), cmpopts.EquateNaNs()))
		return false
	}
	// A plain request has all that the message has.
	rest := proto.CloneOf(want)
	rest.Sequence, rest.AckNow, rest.StatsAge, rest.Stats, rest.Metadata = 0, false, 0, nil, nil
	require.Zero(t, proto.Size(rest))
	require.Equal(t, want.GetStats() != nil, f.Stats != nil)
	if f.Stats != nil {
		checkReport(t, f.Stats, want.GetStats())
	}
	require.Equal(t, want.GetMetadata() != nil, f.metadata != nil)
	if f.metadata != nil {
		require.Equal(t, len(want.GetMetadata().GetMetadata()), len(f.entries))
		for i, m := range want.GetMetadata().GetMetadata() {
			require.Equal(t, agent.MetadataEntry{Key: m.GetKey(), Value: m.GetResult().GetValue(), Error: m.GetResult().GetError()}, f.entries[i])
		}
	}
	return true
}

// matchOwn has each sample matched with its own encoding, as the aggregator does.
func (f *Frame) matchOwn() {
	if f.Stats == nil {
		return
	}
	for i := range f.Stats.Len() {
		if encoding := f.Stats.Encoding(i); encoding != (agent.SampleEncoding{}) {
			f.Stats.Match(i, &encoding)
		}
	}
	f.encodings = f.Stats.encodings(f.encodings)
}

func checkReport(t require.TestingT, got *Report, stats *agentstatsv1.Stats) {
	want := NewMessageReport(stats)
	defer want.Release()
	// Not a number is not equal to itself.
	require.Equal(t, fmt.Sprintf("%+v", want.Stats()), fmt.Sprintf("%+v", got.Stats()))
	require.Equal(t, math.Float64bits(want.Stats().MedianLatencyMS), math.Float64bits(got.Stats().MedianLatencyMS))
	require.Equal(t, want.Len(), got.Len())
	for i := range want.Len() {
		sample := *want.Sample(i)
		require.Equal(t, inWords(sample), inWords(*got.Sample(i)))
		for j := range got.Len() {
			encoding := got.Encoding(j)
			if encoding == (agent.SampleEncoding{}) {
				continue
			}
			v, ok := got.Match(i, &encoding)
			if ok {
				require.Equal(t, math.Float64bits(sample.Value), math.Float64bits(v))
				other := *want.Sample(j)
				other.Value = sample.Value
				sample := *want.Sample(i)
				require.Equal(t, inWords(sample), inWords(other))
			}
			require.True(t, ok || i != j, "a sample has its own encoding")
		}
	}
	rest := proto.CloneOf(stats)
	rest.Metrics = nil
	others := &agentstatsv1.Stats{}
	require.NoError(t, proto.Unmarshal(got.others, others))
	require.Empty(t, cmp.Diff(rest, others, protocmp.Transform(), cmpopts.EquateNaNs()))
}

// inWords describes a sample: of its value, each bit.
func inWords(s agent.Sample) string {
	return fmt.Sprintf("%q %d %x %q", s.Name, s.Type, math.Float64bits(s.Value), s.Labels)
}

func encoded(t require.TestingT, m proto.Message) []byte {
	data, err := proto.Marshal(m)
	require.NoError(t, err)
	return data
}

func statsRequest(sequence int64, stats *agentstatsv1.Stats) *agentstatsv1.ConnectRequest {
	return &agentstatsv1.ConnectRequest{Sequence: sequence, Stats: stats}
}

// fullStats has each field set.
func fullStats() *agentstatsv1.Stats {
	return &agentstatsv1.Stats{
		ConnectionsByProto: map[string]int64{"TCP": 3, "": 0}, ConnectionCount: 4, ConnectionMedianLatencyMs: 1.5,
		RxPackets: 1, RxBytes: -2, TxPackets: 3, TxBytes: math.MaxInt64,
		SessionCountVscode: 1, SessionCountJetbrains: 2, SessionCountReconnectingPty: 3, SessionCountSsh: 4,
		SessionCounts: map[string]int64{"cursor": 1, "ssh": 2, "é": -1},
		Metrics: []*agentstatsv1.Stats_Metric{
			{Name: "a", Type: agentstatsv1.Stats_Metric_TYPE_COUNTER, Value: 1, Labels: []*agentstatsv1.Stats_Metric_Label{{Name: "x", Value: "1"}, {Name: "y"}}},
			{Name: "a", Type: agentstatsv1.Stats_Metric_TYPE_COUNTER, Labels: []*agentstatsv1.Stats_Metric_Label{{Name: "x", Value: "1"}, {Name: "y"}}},
			{Name: strings.Repeat("n", 200), Value: math.NaN()},
			{Name: "a", Type: -1, Value: math.Inf(-1)},
			{},
			{Labels: []*agentstatsv1.Stats_Metric_Label{{}}},
		},
	}
}

// plainRequests are what encoders make of requests.
func plainRequests(t require.TestingT) map[string][]byte {
	both := statsRequest(7, fullStats())
	both.Metadata = &agentstatsv1.MetadataReport{Metadata: []*agentstatsv1.Metadata{{Key: "k"}}}
	now := proto.CloneOf(both)
	now.AckNow, now.StatsAge = true, 70_000
	return map[string][]byte{
		"both":     encoded(t, both),
		"ack now":  encoded(t, now),
		"full":     encoded(t, statsRequest(7, fullStats())),
		"empty":    encoded(t, statsRequest(1<<40, &agentstatsv1.Stats{})),
		"metadata": encoded(t, &agentstatsv1.ConnectRequest{Sequence: 2, Metadata: &agentstatsv1.MetadataReport{Metadata: []*agentstatsv1.Metadata{{Key: "k", Result: &agentstatsv1.Metadata_Result{Value: "v", Error: "e", Age: 5}}, {}}}}),
	}
}

// oddRequests are encoded in ways that encoders may use, but hardly one does,
// and in ways that none may.
func oddRequests() map[string][]byte {
	field := func(n protowire.Number, parts ...[]byte) []byte {
		var b []byte
		for _, p := range parts {
			b = append(b, p...)
		}
		return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), b)
	}
	varint := func(n protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(nil, n, protowire.VarintType), v)
	}
	double := func(n protowire.Number, v float64) []byte {
		return protowire.AppendFixed64(protowire.AppendTag(nil, n, protowire.Fixed64Type), math.Float64bits(v))
	}
	stats := func(parts ...[]byte) []byte { return append(varint(1, 9), field(3, parts...)...) }
	name, value, label := field(1, []byte("n")), double(3, 5), field(4, field(1, []byte("l")), field(2, []byte("v")))
	return map[string][]byte{
		"nothing":                 nil,
		"sequence last":           append(field(3, varint(5, 1)), varint(1, 9)...),
		"sequence twice":          append(varint(1, 8), stats()...),
		"stats in two parts":      append(stats(varint(5, 1), field(12, name, value)), field(3, varint(7, 2), field(12, name))...),
		"stats, then metadata":    append(stats(varint(5, 1)), field(4, field(1, field(1, []byte("k"))))...),
		"metadata, then stats":    append(append(varint(1, 9), field(4, field(1, field(1, []byte("k"))))...), field(3, varint(5, 1))...),
		"ack now, nothing else":   append(varint(1, 9), varint(10, 1)...),
		"ack now twice":           append(stats(), append(varint(10, 1), varint(10, 0)...)...),
		"ages":                    append(stats(varint(5, 1)), field(13, field(1, []byte{1, 2}), varint(1, 3), varint(3, 4))...),
		"superseded":              append(stats(varint(5, 1)), varint(9, 1)...),
		"unknown field":           append(stats(varint(5, 1)), varint(1000, 1)...),
		"unknown field of stats":  stats(varint(5, 1), varint(1000, 1)),
		"unknown small field":     stats(varint(14, 1)),
		"unknown field of metric": stats(field(12, name, varint(9, 3), value)),
		"group":                   stats(field(12, name, []byte{0x2b, 0x2c}, value)),
		"open group":              stats([]byte{0x73}),
		"scalars twice":           stats(varint(5, 1), varint(5, 2), double(3, 1), double(3, 2)),
		"sample's scalars twice":  stats(field(12, name, value, varint(2, 1), field(1, []byte("m")), double(3, 6), varint(2, 2))),
		"value first":             stats(field(12, value, name, label)),
		"labels before the value": stats(field(12, name, label, value, label)),
		"value within the labels": stats(field(12, name, label, value)),
		"label's parts twice":     stats(field(12, name, field(4, field(2, []byte("v")), field(1, []byte("l")), field(1, []byte("k"))))),
		"type beyond 32 bits":     stats(field(12, name, varint(2, 1<<32|2))),
		"long varints":            {0x88, 0x00, 0x89, 0x80, 0x00, 0x1a, 0x02, 0x28, 0x07},
		"long length":             {0x08, 0x09, 0x1a, 0x84, 0x00, 0x28, 0x87, 0x80, 0x00},
		"varint of 11 bytes":      append([]byte{0x08}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01),
		"varint overflows":        append([]byte{0x08}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02),
		"packed scalar":           stats(field(5, []byte{1, 2})),
		"packed value":            stats(field(12, name, field(3, make([]byte, 16)))),
		"wrong type of a scalar":  stats(double(5, 1)),
		"wrong type of a sample":  stats(varint(12, 1)),
		"map entry without value": stats(field(13, field(1, []byte("ssh")))),
		"map entry without name":  stats(field(13, varint(2, 5))),
		"map entry reversed":      stats(field(13, varint(2, 5), field(1, []byte("ssh")))),
		"map entry with more":     stats(field(13, field(1, []byte("ssh")), varint(2, 5), varint(3, 1))),
		"map entry's parts twice": stats(field(13, field(1, []byte("ssh")), varint(2, 5), field(1, []byte("cursor")), varint(2, 6))),
		"map entry twice":         stats(field(13, field(1, []byte("ssh")), varint(2, 5)), field(13, field(1, []byte("ssh")), varint(2, 6))),
		"name is not UTF-8":       stats(field(12, field(1, []byte{0xff}))),
		"label is not UTF-8":      stats(field(12, name, field(4, field(2, []byte{0xc3})))),
		"map name is not UTF-8":   stats(field(13, field(1, []byte{0xff}))),
		"protocol is not UTF-8":   stats(field(1, field(1, []byte{0xff}))),
		"metadata is not UTF-8":   append(varint(1, 9), field(4, field(1, field(1, []byte{0xff})))...),
		"metadata with split result": append(varint(1, 9), field(4, field(1, field(1, []byte("k")),
			field(2, field(3, []byte("v"))), field(2, field(4, []byte("e")))))...),
		"cut short":       stats(field(12, name, value, label))[:20],
		"length too long": {0x08, 0x09, 0x1a, 0x7f, 0x28},
		"field zero":      stats([]byte{0x02, 0x00}),
	}
}

func TestPlainRequests(t *testing.T) {
	for name, data := range plainRequests(t) {
		t.Run(name, func(t *testing.T) { require.True(t, checkFrame(t, data)) })
	}
	goodbye := &agentstatsv1.ConnectRequest{Sequence: 3, Goodbye: &agentstatsv1.Goodbye{}}
	require.False(t, checkFrame(t, encoded(t, goodbye)), "a request of another kind")
}

func TestOddRequests(t *testing.T) {
	for name, data := range oddRequests() {
		t.Run(name, func(t *testing.T) { checkFrame(t, data) })
	}
}

// A report in any order of fields, with any of them repeated, and with some
// bytes changed, is read as the generated code does.
func TestRequestsProperty(t *testing.T) {
	plain := 0
	rapid.Check(t, func(t *rapid.T) {
		fields := fieldsOf(t, encoded(t, fullStats()))
		fields = rapid.Permutation(fields).Draw(t, "order")
		fields = append(fields, rapid.SliceOfN(rapid.SampledFrom(fields), 0, 3).Draw(t, "repeated")...)
		var stats []byte
		for _, f := range fields {
			stats = append(stats, f...)
		}
		data := protowire.AppendVarint([]byte{tagSequence}, 9)
		data = protowire.AppendBytes(append(data, tagStats), stats)
		for range rapid.IntRange(0, 2).Draw(t, "changes") {
			data[rapid.IntRange(0, len(data)-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		}
		before := data
		if rapid.Bool().Draw(t, "other before") {
			other := fullStats()
			other.Metrics = rapid.Permutation(other.GetMetrics()).Draw(t, "samples before")
			before = encoded(t, statsRequest(1, other))
		}
		if checkFrame(t, data, before) {
			plain++
		}
	})
	require.Positive(t, plain)
}

// fieldsOf splits a message into its fields.
func fieldsOf(t require.TestingT, message []byte) (fields [][]byte) {
	for len(message) > 0 {
		_, _, n := protowire.ConsumeField(message)
		require.Positive(t, n)
		fields = append(fields, message[:n])
		message = message[n:]
	}
	return fields
}

func FuzzRequest(f *testing.F) {
	for _, data := range plainRequests(f) {
		f.Add(data, data)
	}
	for _, data := range oddRequests() {
		f.Add(data, data)
	}
	f.Fuzz(func(t *testing.T, before, data []byte) {
		if len(data) < 1<<12 { // encodings are compared each with each
			checkFrame(t, data, before)
		}
	})
}

// A sample that has its encoding again is not looked into, and whatever else stands
// in its place is.
func TestEncodingsOfTheReportBefore(t *testing.T) {
	first := wireStats(3, 1)
	before := encoded(t, statsRequest(1, first))
	changed := func(change func(m *agentstatsv1.Stats)) []byte {
		m := wireStats(3, 2)
		change(m)
		return encoded(t, statsRequest(2, m))
	}
	for name, data := range map[string][]byte{
		"new values":   changed(func(*agentstatsv1.Stats) {}),
		"a zero":       changed(func(m *agentstatsv1.Stats) { m.Metrics[1].Value = 0 }),
		"one less":     changed(func(m *agentstatsv1.Stats) { m.Metrics = m.Metrics[1:] }),
		"one more":     changed(func(m *agentstatsv1.Stats) { m.Metrics = append(m.Metrics[:1:1], m.Metrics...) }),
		"another type": changed(func(m *agentstatsv1.Stats) { m.Metrics[2].Type = agentstatsv1.Stats_Metric_TYPE_COUNTER }),
		"another name": changed(func(m *agentstatsv1.Stats) { m.Metrics[0].Name = "agent_metric_9" }),
		"a label less": changed(func(m *agentstatsv1.Stats) { m.Metrics[0].Labels = m.Metrics[0].GetLabels()[:1] }),
	} {
		t.Run(name, func(t *testing.T) { require.True(t, checkFrame(t, data, before)) })
	}
	other := changed(func(*agentstatsv1.Stats) {})
	const head = "agent_metric_1\x10\x02"
	at := bytes.Index(other, []byte(head)) + len(head)
	require.Equal(t, tagSampleValue, other[at])
	other[at] = 9<<3 | byte(protowire.Fixed64Type)
	require.False(t, checkFrame(t, other, before), "another field in the place of a value")
	bad := changed(func(m *agentstatsv1.Stats) { m.Metrics[1].Value = math.Float64frombits(0x4141414141414141) })
	bad = bytes.Replace(bad, []byte("AAAAAAAA\"\x0b\n\x04kind"), []byte("AAAAAAAA\"\x0b\n\x04k\xffnd"), 1)
	require.Contains(t, string(bad), "k\xffnd")
	require.False(t, checkFrame(t, bad, before), "a label that is not UTF-8")
}
