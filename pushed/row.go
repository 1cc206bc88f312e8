package pushed

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

// row is the content of a row of the store: gob, compressed with zstd. Fields may
// be added, as gob skips unknown ones.
type row struct {
	Interval time.Duration
	Snapshot int64
	Final    bool
	// Folded families lack their bases, which follow from the last values.
	Folded   bool
	Refused  []agent.PushRefusal
	Families []*family
}

// codec compresses rows. It is used by one goroutine at a time.
type codec struct {
	encoder *zstd.Encoder
	decoder *zstd.Decoder
}

// maxPlainBytes bounds what a row is decompressed to. gob writes at most 8 GiB at
// once, so whatever was stored can be read, also with a lower limit of rows. How
// much is stored is bounded by the series and their labels.
const maxPlainBytes = 16 << 30

func newCodec() (*codec, error) {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("make a compressor: %w", err)
	}
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxPlainBytes))
	if err != nil {
		return nil, fmt.Errorf("make a decompressor: %w", err)
	}
	return &codec{encoder, decoder}, nil
}

// encode returns i as a row in place of that of its version, and notes how large
// it is.
func (c *codec) encode(i *instance) (agent.PushRow, error) {
	r := row{
		Interval: i.interval, Snapshot: i.snapshot, Final: i.final, Folded: i.folded, Refused: i.refused,
		Families: make([]*family, 0, len(i.families)),
	}
	for _, f := range i.families {
		if i.folded {
			f = f.withoutBases()
		}
		r.Families = append(r.Families, f)
	}
	slices.SortFunc(r.Families, func(a, b *family) int { return strings.Compare(a.Name, b.Name) })
	var plain bytes.Buffer
	if err := gob.NewEncoder(&plain).Encode(&r); err != nil {
		return agent.PushRow{}, fmt.Errorf("encode what instance %x pushed: %w", i.id, err)
	}
	data := c.encoder.EncodeAll(plain.Bytes(), nil)
	i.rowBytes = len(data)
	return agent.PushRow{Instance: i.id, Replica: i.replica, UpdatedAt: i.updatedAt, Data: data, Version: i.version}, nil
}

// decode returns the instance of a row that was read at now, and how many values
// were left out, see heal.
func (c *codec) decode(in agent.PushRow, now time.Time) (_ *instance, healed int, _ error) {
	plain, err := c.decoder.DecodeAll(in.Data, nil)
	if err != nil {
		return nil, 0, fmt.Errorf("decompress what instance %x pushed: %w", in.Instance, err)
	}
	var r row
	if err := gob.NewDecoder(bytes.NewReader(plain)).Decode(&r); err != nil {
		return nil, 0, fmt.Errorf("decode what instance %x pushed: %w", in.Instance, err)
	}
	i := &instance{
		id: in.Instance, replica: in.Replica, version: in.Version, updatedAt: in.UpdatedAt, aliveAt: in.UpdatedAt,
		interval: r.Interval, snapshot: r.Snapshot, final: r.Final, folded: r.Folded, refused: r.Refused,
		families: make(map[string]*family, len(r.Families)), rowBytes: len(in.Data),
	}
	for _, f := range r.Families {
		if f == nil {
			return nil, 0, fmt.Errorf("decode what instance %x pushed: %w", in.Instance, errNoFamily)
		}
		if len(f.Series) == 0 {
			continue // rows of before have families that were refused series by series
		}
		f.setSince(f.Since, true) // rows of before series had it
		f.dropEmptyExemplars()
		healed += f.heal(in.Instance == agent.Instance{})
		i.families[f.Name] = f
	}
	if err := i.check(); err != nil {
		return nil, 0, fmt.Errorf("decode what instance %x pushed: %w", in.Instance, err)
	}
	for name, f := range i.families {
		if i.folded {
			i.families[name] = foldFamily(f)
		}
	}
	if now.Before(i.aliveAt) {
		i.aliveAt = now
	}
	i.countLines()
	return i, healed, nil
}

// heal leaves out what of a cumulative family is no number any more, or beyond all
// that is measured: rows of before this was refused have it. It returns how much
// that is.
func (f *family) heal(isTotals bool) (healed int) {
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
			healed++
		}
		if !isSum(s.Base.value()) {
			s.Base = nil
			healed++
		}
		if s.Hist != nil && !isLast(s.Hist.Sum.value()) {
			s.Hist.Sum = nil
			healed++
		}
		if s.BaseHist != nil && !isSum(s.BaseHist.Sum.value()) {
			s.BaseHist.Sum = nil
			healed++
		}
	}
	return healed
}

// dropEmptyExemplars drops the exemplars of buckets that rows of before have
// without their content.
func (f *family) dropEmptyExemplars() {
	for i := range f.Series {
		for _, d := range []*distribution{f.Series[i].Hist, f.Series[i].BaseHist} {
			if d != nil {
				d.Exemplars = slices.DeleteFunc(d.Exemplars, func(e bucketExemplar) bool { return e.Exemplar == exemplar{} })
			}
		}
	}
}

func (f *family) withoutBases() *family {
	out := *f
	out.Series = slices.Clone(f.Series)
	for i := range out.Series {
		out.Series[i].Base, out.Series[i].BaseHist = nil, nil
	}
	return &out
}
