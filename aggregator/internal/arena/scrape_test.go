package arena

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/metrics"
)

// segmented is a writer that writes segments, and makes them when it is asked for
// its bytes: all blocks may have changed by then.
type segmented struct {
	zip   bool
	parts []any // of []byte or Segment
	// made has the compressed segments.
	made []metrics.Deflated
}

func (w *segmented) Deflates() bool { return w.zip }

func (w *segmented) Write(p []byte) (int, error) {
	w.parts = append(w.parts, bytes.Clone(p))
	return len(p), nil
}

func (w *segmented) WriteSegment(s metrics.Segment) error {
	w.parts = append(w.parts, s)
	return nil
}

// bytes makes what was written. It is called once.
func (w *segmented) bytes(t require.TestingT) []byte {
	var out []byte
	var d *metrics.Deflater
	for _, p := range w.parts {
		switch p := p.(type) {
		case []byte:
			out = append(out, p...)
		case metrics.Segment:
			if !w.zip {
				if data := p.Borrow(); data != nil {
					out = append(out, data...)
					p.Release()
				} else {
					out = p.AppendTo(out)
				}
				continue
			}
			if d == nil {
				d = metrics.NewDeflater()
			}
			z := p.Deflated(d)
			w.made = append(w.made, z)
			raw, err := io.ReadAll(flate.NewReader(bytes.NewReader(append(bytes.Clone(z.Data), 3, 0))))
			require.NoError(t, err)
			require.EqualValues(t, z.Size, len(raw))
			out = append(out, raw...)
		}
	}
	return out
}

// both are the formats.
var both = map[string]struct {
	begin func(io.Writer, *Generations, metrics.Shard) *Scrape
	is    expfmt.Format
}{
	"text":     {NewText, expfmt.NewFormat(expfmt.TypeTextPlain)},
	"protobuf": {NewProto, expfmt.NewFormat(expfmt.TypeProtoDelim)},
}

// scrapeOf begins and ends a scrape of one family.
func scrapeOf(t require.TestingT, w io.Writer, f *Family, h Header, begin func(io.Writer, *Generations, metrics.Shard) *Scrape) {
	scrapeShard(t, w, f, h, begin, metrics.Shard{})
}

// scrapeShard is scrapeOf of a shard.
func scrapeShard(t require.TestingT, w io.Writer, f *Family, h Header, begin func(io.Writer, *Generations, metrics.Shard) *Scrape, shard metrics.Shard) {
	s := begin(w, f.generations, shard)
	require.NoError(t, s.Close(s.Family(f, h)))
}

// lines returns a family whose blocks are worth segments.
func lines(generations *Generations, n int) (f *Family, blocks []*Block, slots []uint32) {
	f = NewFamily(generations, "f")
	for i := range n {
		b, slot := f.Add(longPrefix(i), metrics.ShardKey(i), float64(i))
		blocks, slots = append(blocks, b), append(slots, slot)
	}
	return f, blocks, slots
}

func longPrefix(i int) []byte {
	return fmt.Appendf(nil, "f{i=\"%d\",long=\"%s\"} ", i, strings.Repeat("x", 100))
}

// parse returns the number of series of each family, by Prometheus's parser and
// by expfmt, which must agree.
func parse(t require.TestingT, data []byte, format expfmt.Format) (series map[string]float64) {
	series = make(map[string]float64)
	p, err := textparse.New(data, string(format), labels.NewSymbolTable(), textparse.ParserOptions{})
	require.NoError(t, err)
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		if entry == textparse.EntrySeries {
			var l labels.Labels
			p.Labels(&l)
			_, twice := series[l.Get("i")]
			require.False(t, twice, l)
			_, _, series[l.Get("i")] = p.Series()
		}
	}
	n := 0
	dec := expfmt.NewDecoder(bytes.NewReader(data), format)
	for {
		var f dto.MetricFamily
		if err := dec.Decode(&f); errors.Is(err, io.EOF) {
			break
		} else {
			require.NoError(t, err)
		}
		n += len(f.Metric)
	}
	require.Equal(t, n, len(series))
	return series
}

// All writers get the same.
func TestSegmentsAreWhatIsWrittenPlain(t *testing.T) {
	var generations Generations
	f, blocks, slots := lines(&generations, 3*blockSlots)
	for name, format := range both {
		begin := format.begin
		for i := range blocks {
			blocks[i].Set(slots[i], float64(i)/3)
		}
		var plain bytes.Buffer
		h := Header{Help: "Help.", Type: metrics.Gauge}
		scrapeOf(t, &plain, f, h, begin)
		for _, zip := range []bool{false, true} {
			w := &segmented{zip: zip}
			scrapeOf(t, w, f, h, begin)
			require.Greater(t, len(w.parts), 3, name)
			require.True(t, bytes.Equal(plain.Bytes(), w.bytes(t)), name)
		}
	}
}

// A scrape in protobuf writes a family's length before its blocks. Series that come, go
// and change in between do not disturb it.
func TestProtobufKeepsItsLength(t *testing.T) {
	var generations Generations
	f, blocks, slots := lines(&generations, 3*blockSlots)
	for _, zip := range []bool{false, true} {
		w := &segmented{zip: zip}
		s := NewProto(w, &generations, metrics.Shard{})
		require.NoError(t, s.Family(f, Header{Type: metrics.Counter}))
		require.NoError(t, s.Family(f, Header{Type: metrics.Gauge}))
		require.NoError(t, s.Close(nil))
		w.parts = w.parts[:len(w.parts)/2] // of the same family: the first time
		want := len(blocks)
		for i := range blocks {
			if i%5 < 2 && len(blocks[i].values) == blockSlots { // else it was written at once
				want--
			}
			switch i % 5 {
			case 0:
				blocks[i], slots[i] = blocks[i].Hide(slots[i])
			case 1:
				blocks[i].Remove(slots[i])
				blocks[i], slots[i] = f.Add(longPrefix(i), metrics.ShardKey(i), -1)
			case 2:
				blocks[i].Set(slots[i], 1e6)
			}
		}
		// Another scrape, of another type.
		scrapeOf(t, io.Discard, f, Header{Type: metrics.Untyped}, NewProto)
		generations.dropProto()
		got := parse(t, w.bytes(t), expfmt.NewFormat(expfmt.TypeProtoDelim))
		require.Equal(t, want, len(got))
		for i := range blocks {
			if i%5 == 2 && len(blocks[i].values) == blockSlots && got[fmt.Sprint(i)] != 1e6 {
				t.Errorf("%d is %v", i, got[fmt.Sprint(i)])
			}
		}
		for i := range blocks {
			if i%5 == 0 {
				blocks[i].Show(slots[i], longPrefix(i), metrics.ShardKey(i))
			}
		}
	}
}

// Metrics go when nobody scrapes protobuf, and only then.
func TestProtoLinesGo(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var generations Generations
		f, blocks, slots := lines(&generations, 2*blockSlots)
		protoBlocks := func() (n int) {
			for _, b := range f.blocks {
				b.mu.Lock()
				if b.proto != nil {
					n++
				}
				b.mu.Unlock()
			}
			return n
		}
		h := Header{Type: metrics.Gauge}
		scrapeOf(t, io.Discard, f, h, NewText)
		require.Zero(t, protoBlocks())
		for range 3 {
			scrapeOf(t, io.Discard, f, h, NewProto)
			require.Equal(t, len(f.blocks), protoBlocks())
			time.Sleep(protoIdle - time.Second)
			scrapeOf(t, io.Discard, f, h, NewText)
		}
		require.Equal(t, len(f.blocks), protoBlocks())
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.Zero(t, protoBlocks())
		require.Empty(t, generations.protoBlocks)

		// Blocks that are gone are forgotten.
		scrapeOf(t, io.Discard, f, h, NewProto)
		require.Len(t, generations.protoBlocks, len(f.blocks))
		for i := range blocks {
			blocks[i].Remove(slots[i])
		}
		require.Empty(t, generations.protoBlocks)
		generations.protoTimer.Stop()
	})
}

// Scrapes of both formats, compressed or not, go on while series come and go and
// the type changes. Each parses, and has each of the steady series once.
func TestConcurrentScrapes(t *testing.T) {
	var generations Generations
	const steady = 1500
	f, blocks, slots := lines(&generations, steady)
	stop := make(chan struct{})
	var wg, readers sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			blocks[i%steady].Set(slots[i%steady], float64(i)*1.5)
			b, slot := f.Add(longPrefix(steady+i%100), metrics.ShardKey(i), 1)
			b, slot = b.Hide(slot)
			b.Show(slot, longPrefix(steady+i%100), metrics.ShardKey(i))
			b.Remove(slot)
			if i%1000 == 0 {
				generations.dropProto()
			}
		}
	})
	for n := range 4 {
		readers.Go(func() {
			format := both["text"]
			if n%2 == 0 {
				format = both["protobuf"]
			}
			for i := range 10 {
				w := &segmented{zip: n < 2 || i%2 == 0}
				scrapeOf(t, w, f, Header{Type: metrics.Type(i % 3)}, format.begin)
				got := parse(t, w.bytes(t), format.is)
				for j := range steady {
					if _, there := got[fmt.Sprint(j)]; !there {
						t.Errorf("%d is not there", j)
					}
				}
			}
		})
	}
	readers.Wait()
	close(stop)
	wg.Wait()
	require.Empty(t, generations.sharing)
}

// inOrder makes segments at once and throws them away.
type inOrder struct {
	zip bool
	d   *metrics.Deflater
	buf []byte
}

func (w *inOrder) Deflates() bool              { return w.zip }
func (w *inOrder) Write(p []byte) (int, error) { return len(p), nil }

func (w *inOrder) WriteSegment(s metrics.Segment) error {
	switch {
	case w.zip:
		s.Deflated(w.d)
	case s.Borrow() != nil:
		s.Release()
	default:
		w.buf = s.AppendTo(w.buf[:0])
	}
	return nil
}

// After scrapes the heap is what it was before, but for metrics, and
// those go as well.
func TestScrapesGiveMemoryBack(t *testing.T) {
	var generations Generations
	f, blocks, slots := lines(&generations, 50_000)
	for i := range blocks { // as wide as they become
		blocks[i].Set(slots[i], 1e6+float64(i)/3)
	}
	scrapeOf(t, io.Discard, f, Header{}, NewText)
	before := heap()
	for _, begin := range []func(io.Writer, *Generations, metrics.Shard) *Scrape{NewText, NewProto} {
		var open []*Scrape
		for _, zip := range []bool{false, true, true} {
			w := &segmented{zip: zip}
			s := begin(w, &generations, metrics.Shard{})
			require.NoError(t, s.Family(f, Header{}))
			w.bytes(t)
			open = append(open, s)
		}
		for _, s := range open {
			require.NoError(t, s.Close(nil))
		}
	}
	with := heap()
	require.Greater(t, with, before+50_000*100, "the metrics are there")
	generations.dropProto()
	require.Less(t, float64(heap()), float64(before)+1<<20)
	runtime.KeepAlive(f)
}

func heap() uint64 {
	var m runtime.MemStats
	for range 3 { // a pool is empty after two
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
