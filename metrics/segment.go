package metrics

import "io"

// SegmentWriter is what the handler gives to its parts to write to. It writes bytes
// and segments. Other goroutines make segments while earlier ones are written to the
// client.
//
// It is not for concurrent use. An error may be of an earlier write.
type SegmentWriter interface {
	io.Writer
	// WriteSegment writes s behind what was written before. It may block for as long
	// as the client is slow.
	WriteSegment(s Segment) error
	// Deflates reports whether segments are compressed.
	Deflates() bool
}

// Segment is about 100 KB of an exposition, which one goroutine makes. Goroutines use
// it one after another, and also after the part that wrote it has returned. The last
// call, if there is one, is AppendTo, Deflated or Release.
type Segment interface {
	// Borrow returns the part's own bytes of the segment, which do not change until
	// Release. It returns nil if AppendTo has to copy them.
	Borrow() []byte
	// Release says that the borrowed bytes are not read any more.
	Release()
	// AppendTo appends the segment's bytes.
	AppendTo(dst []byte) []byte
	// Deflated returns the compressed bytes, which d or another Deflater makes. They
	// are valid until d is used again.
	Deflated(d *Deflater) Deflated
}
