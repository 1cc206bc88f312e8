package wire

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// generatedEntries is what the generated code gives.
func generatedEntries(raw []byte) ([]agent.MetadataEntry, error) {
	var m agentstatsv1.MetadataReport
	if err := proto.Unmarshal(raw, &m); err != nil {
		return nil, err
	}
	var entries []agent.MetadataEntry
	for _, m := range m.GetMetadata() {
		entries = append(entries, agent.MetadataEntry{Key: m.GetKey(), Value: m.GetResult().GetValue(), Error: m.GetResult().GetError()})
	}
	return entries, nil
}

// requireGenerated checks the entries against those of the generated code.
func requireGenerated(t *testing.T, raw []byte, entries []agent.MetadataEntry) {
	t.Helper()
	want, err := generatedEntries(raw)
	require.NoError(t, err, "%x", raw)
	require.Len(t, entries, len(want), "%x", raw)
	for i := range want {
		require.Equal(t, want[i], entries[i], "%x", raw)
	}
}

// field is one field of the wire type for a length and bytes, text one of a
// string, number one of a varint.
func field(n protowire.Number, parts ...[]byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), bytes.Join(parts, nil))
}

func text(n protowire.Number, s string) []byte { return field(n, []byte(s)) }

func number(n protowire.Number, v int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, n, protowire.VarintType), uint64(v))
}

// metadataWires are reports by what is special about them.
func metadataWires() []struct {
	name  string
	raw   []byte
	plain bool
} {
	result := func(fields ...[]byte) []byte { return field(1, text(1, "k"), field(2, fields...)) }
	cut := result(text(3, "value"))
	return []struct {
		name  string
		raw   []byte
		plain bool
	}{
		{"empty", nil, true},
		{"empty entry", field(1), true},
		{"no result", field(1, text(1, "k")), true},
		{"no key", field(1, field(2, text(3, "v"))), true},
		{"empty fields", field(1, text(1, ""), field(2, field(1), number(2, 0), text(3, ""), text(4, ""))), true},
		{"all fields", result(field(1, number(1, 1_700_000_000), number(2, 999)), number(2, 3), text(3, "v"), text(4, "e")), true},
		{"reverse order", field(1, field(2, text(4, "e"), text(3, "v"), number(2, 3), field(1, number(2, 999), number(1, 1))), text(1, "k")), true},
		{"negative numbers", result(field(1, number(1, -1), number(2, -1)), number(2, -1)), true},
		{"nanos beyond 32 bits", result(field(1, number(2, 1<<40))), true},
		{"length of two bytes", result(text(3, strings.Repeat("x", 300)), text(4, "e")), true},
		{"length of three bytes", result(text(3, strings.Repeat("x", 1<<14))), true},
		{"seconds twice", result(field(1, number(1, 1), number(1, 2))), true},
		{"long length", []byte{0x0a, 0x83, 0x00, 0x0a, 0x01, 'k'}, true},
		{"long age", result([]byte{2 << 3, 0x81, 0x00}), true},
		{"value of two characters", result(text(3, "\u00e9\U0001F600")), true},
		{"NUL", result(text(3, "a\x00b")), true},
		{"same key twice", append(result(text(3, "old")), result(text(3, "new"))...), true},

		{"key twice", field(1, text(1, "a"), text(1, "b")), false},
		{"split result", field(1, text(1, "k"), field(2, text(3, "v")), field(2, text(4, "e"))), false},
		{"result twice, first one bad", field(1, text(1, "k"), field(2, text(3, "v")), field(2)), false},
		{"value twice", result(text(3, "a"), text(3, "b")), false},
		{"error twice", result(text(4, "a"), text(4, "")), false},
		{"age twice", result(number(2, 1), number(2, 2)), false},
		{"split time", result(field(1, number(1, 1)), field(1, number(2, 1))), false},
		{"unknown field of the report", append(result(text(3, "v")), text(9, "x")...), false},
		{"entry in another field", append(result(text(3, "v")), field(2, text(1, "k"))...), false},
		{"unknown field of the entry", field(1, text(1, "k"), number(3, 1)), false},
		{"unknown bytes of the entry", field(1, text(1, "k"), text(3, "x")), false},
		{"unknown field of the result", result(text(3, "v"), text(5, "x")), false},
		{"unknown field of the time", result(field(1, number(3, 1))), false},
		{"field 17, whose last bits are those of 1", result(text(3, "v"), text(17, "x")), false},
		{"field number 0", field(1, text(1, "k"), []byte{0x02, 0x00}), false},
		{"key of another type", field(1, number(1, 1)), false},
		{"key of 32 bits", field(1, []byte{1<<3 | 5, 0, 0, 0, 0}), false},
		{"result of another type", field(1, text(1, "k"), number(2, 1)), false},
		{"age as bytes", result(text(2, "x")), false},
		{"value as a number", result(number(3, 1)), false},
		{"seconds as bytes", result(field(1, text(1, "x"))), false},
		{"group", append(result(text(3, "v")), 5<<3|3, 5<<3|4), false},
		{"group in the entry", field(1, text(1, "k"), []byte{2<<3 | 3, 2<<3 | 4}), false},
		{"end of no group", []byte{1<<3 | 4}, false},
		{"key is not UTF-8", field(1, text(1, "k\xff")), false},
		{"value is not UTF-8", result(text(3, "\xc3")), false},
		{"error is not UTF-8", result(text(4, "\xed\xa0\x80")), false},
		{"long tag", append([]byte{0x8a, 0x00}, field(1, text(1, "k"))[1:]...), false},
		{"age beyond 64 bits", result([]byte{2 << 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02}), false},
		{"age of 11 bytes", result([]byte{2 << 3, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01}), false},
		{"tag only", []byte{0x0a}, false},
		{"half a length", []byte{0x0a, 0x81}, false},
		{"cut", cut[:len(cut)-1], false},
		{"value longer than the result", field(1, text(1, "k"), field(2, []byte{3<<3 | 2, 5, 'v'})), false},
		{"result longer than the entry", append(field(1, text(1, "k"), []byte{2<<3 | 2, 3}), text(3, "v")...), false},
		{"age ends with the result", field(1, field(2, []byte{2 << 3})), false},
		{"good entry, then a bad one", append(result(text(3, "v")), 0xff), false},
	}
}

func TestMetadataWire(t *testing.T) {
	var d metadataDecoder
	for _, c := range metadataWires() {
		entries, ok := d.decode(c.raw)
		require.Equal(t, c.plain, ok, c.name)
		if !ok {
			require.Empty(t, entries, c.name)
			continue
		}
		requireGenerated(t, c.raw, entries)
	}
}

// Whatever the decoder takes, it takes as the generated code does, and it takes
// whatever that writes.
func FuzzMetadataWire(f *testing.F) {
	for _, c := range metadataWires() {
		f.Add(c.raw)
	}
	f.Add(wire10(f, 0))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var d metadataDecoder
		check := func(raw []byte) (ok bool) {
			entries, ok := d.decode(raw)
			if !ok {
				return false
			}
			requireGenerated(t, raw, entries)
			return true
		}
		check(raw)

		var m agentstatsv1.MetadataReport
		if (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, &m) != nil {
			return
		}
		plain, err := proto.Marshal(&m)
		require.NoError(t, err)
		require.True(t, check(plain))
	})
}

// wire10 is a report of 10 keys as an agent sends it.
func wire10(t require.TestingT, n int) []byte {
	m := &agentstatsv1.MetadataReport{}
	for i := range 10 {
		m.Metadata = append(m.Metadata, &agentstatsv1.Metadata{
			Key: fmt.Sprintf("%d_metadata_key", i),
			Result: &agentstatsv1.Metadata_Result{
				CollectedAt: &timestamppb.Timestamp{Seconds: 1_700_000_000 + int64(n), Nanos: 123_456_789},
				Age:         1, Value: fmt.Sprintf("%04d load, 3.1/16 GiB memory, 40%%", n),
			},
		})
	}
	raw, err := proto.Marshal(m)
	require.NoError(t, err)
	return raw
}

// The strings are those of the wire; none outlives its release, and a buffer
// for garbage is not kept.
func TestMetadataWireMemory(t *testing.T) {
	var d metadataDecoder
	raw := wire10(t, 1)
	entries, ok := d.decode(raw)
	require.True(t, ok)
	require.Len(t, entries, 10)
	require.Same(t, &raw[4], unsafe.StringData(entries[0].Key))

	require.Zero(t, testing.AllocsPerRun(100, func() {
		if _, ok := d.decode(raw); !ok {
			t.Error("not taken")
		}
		d.release()
	}))
	require.Equal(t, make([]agent.MetadataEntry, 10), entries)

	_, ok = d.decode(raw)
	require.True(t, ok)
	_, ok = d.decode(raw[:len(raw)-1])
	require.False(t, ok)
	d.release()
	require.Equal(t, make([]agent.MetadataEntry, 10), entries)

	_, ok = d.decode(bytes.Repeat(field(1), 2*maxKeptEntries))
	require.True(t, ok)
	d.release()
	require.Zero(t, cap(d.entries))
}

func BenchmarkMetadataWire10(b *testing.B) {
	raw := wire10(b, 1)
	b.Run("walk", func(b *testing.B) {
		var d metadataDecoder
		b.ReportAllocs()
		for b.Loop() {
			if entries, ok := d.decode(raw); !ok || len(entries) != 10 {
				b.Fatal(entries, ok)
			}
			d.release()
		}
	})
	b.Run("generated", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if entries, err := generatedEntries(raw); err != nil || len(entries) != 10 {
				b.Fatal(entries, err)
			}
		}
	})
}
