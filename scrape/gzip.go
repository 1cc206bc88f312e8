package scrape

import (
	"encoding/binary"
	"sync"

	"github.com/coder/agentstatsd/metrics"
)

// The bytes before and after a member's segments (RFC 1952). The header has no name and
// no time, and says fastest algorithm and unknown system. The trailer has an empty last
// block.
const (
	gzipHeader   = "\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"
	deflateFinal = "\x03\x00"
)

var deflaters = sync.Pool{New: func() any { return metrics.NewDeflater() }}

// putDeflater keeps d for others, unless it has become large.
func putDeflater(d *metrics.Deflater) {
	if d.Cap() <= keptBytes {
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
