package scrape

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"hash/crc32"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/metrics"
)

// The checksum of a text follows from those of its parts.
func TestCombineCRC(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := bytes.Repeat(rapid.SliceOfN(rapid.Byte(), 1, 200).Draw(t, "text"), rapid.SampledFrom([]int{1, 3, 1000}).Draw(t, "times"))
		var sum gzipSum
		for rest := text; len(rest) > 0; {
			n := rapid.IntRange(0, len(rest)).Draw(t, "split")
			sum.add(crc32.ChecksumIEEE(rest[:n]), int64(n))
			rest = rest[n:]
			if n == 0 {
				sum.add(crc32.ChecksumIEEE(rest), int64(len(rest)))
				break
			}
		}
		require.Equal(t, crc32.ChecksumIEEE(text), sum.crc)
		require.EqualValues(t, len(text), sum.size)
	})
}

// unzip reads one member and requires that there is nothing behind it.
func unzip(t require.TestingT, data []byte) []byte {
	r := bufio.NewReader(bytes.NewReader(data))
	z, err := gzip.NewReader(r)
	require.NoError(t, err)
	z.Multistream(false)
	text, err := io.ReadAll(z)
	require.NoError(t, err)
	_, err = r.ReadByte()
	require.ErrorIs(t, err, io.EOF, "more than one member")
	return text
}

// Segments of any size make one member together, whoever made them.
func TestSegmentsMakeOneMember(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		deflaters := []*metrics.Deflater{metrics.NewDeflater(), metrics.NewDeflater()}
		var (
			text []byte
			sum  gzipSum
			data = []byte(gzipHeader)
		)
		for range rapid.IntRange(0, 8).Draw(t, "segments") {
			unit := rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(t, "text")
			raw := bytes.Repeat(unit, rapid.SampledFrom([]int{1, 2, 100, 5000}).Draw(t, "times"))
			d := deflaters[rapid.IntRange(0, 1).Draw(t, "deflater")].Deflate(raw)
			require.EqualValues(t, len(raw), d.Size)
			data = append(data, d.Data...)
			sum.add(d.CRC, d.Size)
			text = append(text, raw...)
		}
		require.True(t, bytes.Equal(text, unzip(t, sum.appendTrailer(data))))
	})
}

func BenchmarkCombineCRC(b *testing.B) {
	crc := uint32(1)
	b.ReportAllocs()
	for b.Loop() {
		crc = combineCRC(crc, 0x12345678, 100<<10)
	}
}

// BenchmarkDeflate compresses the text of one block.
func BenchmarkDeflate(b *testing.B) {
	text := benchText(512)
	d := metrics.NewDeflater()
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		d.Deflate(text)
	}
}
