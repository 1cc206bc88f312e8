package family

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/coder/agentstatsd/agent"
)

// Row is what is stored of one instance, or of the totals.
type Row struct {
	// Interval is the time between two snapshots, as the instance announced it.
	Interval time.Duration
	// Snapshot is the number of the newest one. Final means that it is the last.
	Snapshot int64
	Final    bool
	// Folded means that the totals include all that the families counted.
	Folded bool
	// PassThrough means that the instance has what agents have.
	PassThrough bool
	// Refused are the refusals of the newest snapshot.
	Refused  []agent.PushRefusal
	Families Set
}

// encodedRow is a row as it is stored: gob, compressed with zstd. Fields may be
// added, as gob skips unknown ones.
type encodedRow struct {
	Interval time.Duration
	Snapshot int64
	Final    bool
	// Folded families lack their bases, which follow from the last values.
	Folded   bool
	Refused  []agent.PushRefusal
	Families []*Family

	PassThrough bool
}

// Codec encodes and decodes rows. It is used by one goroutine at a time.
type Codec struct {
	encoder *zstd.Encoder
	decoder *zstd.Decoder
}

// maxPlainBytes bounds what a row is decompressed to. gob writes at most 8 GiB at
// once, so whatever was stored can be read, also with a lower limit of rows. How
// much is stored is bounded by the series and their labels.
const maxPlainBytes = 16 << 30

// NewCodec returns a Codec, which starts no goroutine and needs no end.
func NewCodec() (*Codec, error) {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("make a compressor: %w", err)
	}
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxPlainBytes))
	if err != nil {
		return nil, fmt.Errorf("make a decompressor: %w", err)
	}
	return &Codec{encoder, decoder}, nil
}

// Encode returns the row as it is stored. The caller owns the result.
func (c *Codec) Encode(in *Row) ([]byte, error) {
	r := encodedRow{
		Interval: in.Interval, Snapshot: in.Snapshot, Final: in.Final, Folded: in.Folded, PassThrough: in.PassThrough, Refused: in.Refused,
		Families: make([]*Family, 0, len(in.Families)),
	}
	for _, f := range in.Families {
		if in.Folded {
			f = f.withoutBases()
		}
		r.Families = append(r.Families, f)
	}
	slices.SortFunc(r.Families, func(a, b *Family) int { return strings.Compare(a.Name, b.Name) })
	var plain bytes.Buffer
	if err := gob.NewEncoder(&plain).Encode(&r); err != nil {
		return nil, fmt.Errorf("encode a row: %w", err)
	}
	return c.encoder.EncodeAll(plain.Bytes(), nil), nil
}

// Decode returns the row that was stored as data, which it neither changes nor keeps.
// omitted is the number of counters and sums that are left out, as they are no
// numbers, or beyond all that is measured. isTotals means that the row is that of the
// totals. Of data that Encode did not return there is an error.
func (c *Codec) Decode(data []byte, isTotals bool) (_ *Row, omitted int, _ error) {
	plain, err := c.decoder.DecodeAll(data, nil)
	if err != nil {
		return nil, 0, fmt.Errorf("decompress a row: %w", err)
	}
	var r encodedRow
	if err := gob.NewDecoder(bytes.NewReader(plain)).Decode(&r); err != nil {
		return nil, 0, fmt.Errorf("decode a row: %w", err)
	}
	families := make(Set, len(r.Families))
	for _, f := range r.Families {
		if f == nil {
			return nil, 0, fmt.Errorf("decode a row: %w", errNoFamily)
		}
		f.dropForwarded()
		if len(f.Series) == 0 {
			continue // rows of before have families that were refused series by series
		}
		f.setSince(f.Since, true) // rows of before series had it
		f.dropEmptyExemplars()
		omitted += f.heal(isTotals)
		families[f.Name] = f
	}
	if err := families.check(isTotals); err != nil {
		return nil, 0, fmt.Errorf("decode a row: %w", err)
	}
	if r.Folded {
		families = families.Fold()
	}
	return &Row{
		Interval: r.Interval, Snapshot: r.Snapshot, Final: r.Final, Folded: r.Folded, PassThrough: r.PassThrough, Refused: r.Refused, Families: families,
	}, omitted, nil
}

// heal removes values of a cumulative family that are NaN or too large. Rows that were
// written before such values were refused have them. It returns how much that is.
func (f *Family) heal(isTotals bool) (omitted int) {
	if !cumulative(f.Type) {
		return 0
	}
	isLast := isTerm // what one instance counted last
	if isTotals {
		isLast = isSum
	}
	for i := range f.Series {
		s := &f.Series[i]
		if !isLast(s.Value) || s.Value < 0 {
			s.Value = 0
			omitted++
		}
		if !isSum(s.Base.value()) {
			s.Base = nil
			omitted++
		}
		if s.Hist != nil && !isLast(s.Hist.Sum.value()) {
			s.Hist.Sum = nil
			omitted++
		}
		if s.BaseHist != nil && !isSum(s.BaseHist.Sum.value()) {
			s.BaseHist.Sum = nil
			omitted++
		}
	}
	return omitted
}

// dropEmptyExemplars drops the exemplars of buckets that rows of before have
// without their content.
func (f *Family) dropEmptyExemplars() {
	for i := range f.Series {
		for _, d := range []*Distribution{f.Series[i].Hist, f.Series[i].BaseHist} {
			if d != nil {
				d.Exemplars = slices.DeleteFunc(d.Exemplars, func(e BucketExemplar) bool { return e.Exemplar == Exemplar{} })
			}
		}
	}
}

func (f *Family) withoutBases() *Family {
	out := *f
	out.Series = slices.Clone(f.Series)
	for i := range out.Series {
		out.Series[i].Base, out.Series[i].BaseHist = nil, nil
	}
	return &out
}
