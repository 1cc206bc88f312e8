package metrics

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
)

// gzipLevel is the fastest: it takes an eighth of the time of the standard
// library's default, and what it makes of scrapes is at most a fifth larger,
// see BenchmarkGzipLevels.
const gzipLevel = flate.BestSpeed

// What stands before and after a member's segments (RFC 1952): no name, no time,
// made by the fastest algorithm on an unknown system; an empty last block.
const (
	gzipHeader   = "\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"
	deflateFinal = "\x03\x00"
)

// Deflated is a segment of a gzip member. It refers to nothing before it and
// ends at a byte's boundary, so that segments can follow one another in any
// order.
type Deflated struct {
	Data []byte
	// CRC and Size are of what was compressed.
	CRC  uint32
	Size int64
}

// Deflater compresses segments. It is not for concurrent use.
type Deflater struct {
	// Raw is for what is to be compressed. Its owner does not use it.
	Raw []byte

	out sink
	z   *flate.Writer
}

// sink is a writer to memory.
type sink []byte

func (s *sink) Write(p []byte) (int, error) {
	*s = append(*s, p...)
	return len(p), nil
}

// NewDeflater returns a Deflater. It has some 0.5 MB.
func NewDeflater() *Deflater {
	// The level is a constant that the package knows.
	z, _ := flate.NewWriter(io.Discard, gzipLevel)
	return &Deflater{z: z}
}

// Deflate compresses raw, which it does not keep. What it returns is valid until
// it is called again.
func (d *Deflater) Deflate(raw []byte) Deflated {
	d.out = d.out[:0]
	d.z.Reset(&d.out)
	// A sink takes all, so nothing fails.
	_, _ = d.z.Write(raw)
	_ = d.z.Flush()
	return Deflated{Data: d.out, CRC: crc32.ChecksumIEEE(raw), Size: int64(len(raw))}
}

var deflaters = sync.Pool{New: func() any { return NewDeflater() }}

// putDeflater keeps d for others, unless it has become large.
func putDeflater(d *Deflater) {
	if cap(d.Raw)+cap(d.out) <= keptBytes {
		deflaters.Put(d)
	}
}

// gzipSum is the checksum and the size of a member.
type gzipSum struct {
	crc  uint32
	size int64
}

func (s *gzipSum) add(crc uint32, size int64) {
	s.crc = combineCRC(s.crc, crc, size)
	s.size += size
}

func (s *gzipSum) appendTrailer(dst []byte) []byte {
	dst = append(dst, deflateFinal...)
	dst = binary.LittleEndian.AppendUint32(dst, s.crc)
	return binary.LittleEndian.AppendUint32(dst, uint32(s.size))
}
