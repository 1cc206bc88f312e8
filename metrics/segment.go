package metrics

import "io"

// SegmentWriter is what the handler gives to its parts to write to. Beside bytes
// it takes segments, which other goroutines make while what came before them is
// on its way to the client.
//
// It is not for concurrent use. An error is that of an earlier write as well.
type SegmentWriter interface {
	io.Writer
	// WriteSegment has s written behind what was written before. It may block for
	// as long as a slow client lets it.
	WriteSegment(s Segment) error
	// Deflates reports whether segments are compressed.
	Deflates() bool
}

// Segment is a piece of an exposition that is worth a goroutine's while: about
// 100 KB. It is used by one goroutine after another, and perhaps when the part
// that wrote it has returned. AppendTo, Deflated or Return is the last call, if
// there is one at all.
type Segment interface {
	// Lend returns the segment's bytes as the part itself holds them, which will
	// leave them as they are until Return. nil: it cannot, AppendTo does.
	Lend() []byte
	// Return says that what was lent is not read any more.
	Return()
	// AppendTo appends the segment's bytes.
	AppendTo(dst []byte) []byte
	// Deflated returns them compressed: what d makes of them, or what another
	// Deflater made. It is valid until d is used again.
	Deflated(d *Deflater) Deflated
}
