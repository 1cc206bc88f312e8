package arena

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/metrics"
)

func prefix(i int) []byte { return fmt.Appendf(nil, `f{i="%d"} `, i) }

// read returns what a scrape in each format has, by the label i. Three shards have the
// same, each series once.
func read(t require.TestingT, generations *Generations, f *Family, h Header) map[string]float64 {
	whole := readShard(t, generations, f, h, metrics.Shard{})
	joined := make(map[string]float64)
	for i := range 3 {
		for series, v := range readShard(t, generations, f, h, metrics.Shard{Index: i, Count: 3}) {
			require.NotContains(t, joined, series)
			joined[series] = v
		}
	}
	require.Equal(t, whole, joined)
	return whole
}

// readShard is read of one shard.
func readShard(t require.TestingT, generations *Generations, f *Family, h Header, shard metrics.Shard) map[string]float64 {
	var txt, pb bytes.Buffer
	out := NewText(&txt, generations, shard)
	require.NoError(t, out.Close(out.Family(f, h)))
	p := NewProto(&pb, generations, shard)
	require.NoError(t, p.Close(p.Family(f, h)))

	protobuf := bytes.Clone(pb.Bytes())
	got := make(map[string]float64)
	for line := range strings.Lines(txt.String()) {
		if line[0] == '#' {
			continue
		}
		labels, value, _ := strings.Cut(line, "} ")
		v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		require.NoError(t, err, line)
		i := strings.Split(labels, `"`)[1]
		_, twice := got[i]
		require.False(t, twice, line)
		got[i] = v
	}
	byProto := make(map[string]float64)
	dec := expfmt.NewDecoder(&pb, expfmt.FmtProtoDelim)
	for {
		var m dto.MetricFamily
		err := dec.Decode(&m)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		require.Empty(t, m.ProtoReflect().GetUnknown(), "padding")
		typ := m.GetType()
		for _, m := range m.Metric {
			require.Equal(t, typ == dto.MetricType_GAUGE, m.Gauge != nil)
			require.Equal(t, typ == dto.MetricType_COUNTER, m.Counter != nil)
			require.Equal(t, typ == dto.MetricType_UNTYPED, m.Untyped != nil)
			v := m.Gauge.GetValue() + m.Counter.GetValue() + m.Untyped.GetValue() // two are nil
			byProto[m.Label[0].GetValue()] = v
		}
	}
	require.True(t, maps.Equal(got, byProto))
	for _, zip := range []bool{false, true} {
		w := &segmented{zip: zip}
		scrapeShard(t, w, f, h, NewText, shard)
		require.True(t, bytes.Equal(txt.Bytes(), w.bytes(t)))
		w = &segmented{zip: zip}
		scrapeShard(t, w, f, h, NewProto, shard)
		require.True(t, bytes.Equal(protobuf, w.bytes(t)))
	}
	return got
}

// Whatever is done to a family, a scrape has the shown series with their values.
func TestAnyUseOfAFamily(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type shownSeries struct {
			block *Block
			slot  uint32
			shown int // 0: hidden, else the number in its prefix
			value float64
		}
		var (
			generations Generations
			f           = NewFamily(&generations, "f")
			series      []*shownSeries
			next        = 1
			header      = Header{Type: metrics.Gauge}
			borrowers   []borrowing
		)
		value := rapid.SampledFrom([]float64{0, 7, 1234, 123456, -0.125, 1e300, -math.MaxFloat64, 123456789})
		// each calls do with one series after the other, as long as there is any.
		each := func(t *rapid.T, count int, do func(h *shownSeries)) {
			for ; count > 0 && len(series) > 0; count-- {
				do(series[rapid.IntRange(0, len(series)-1).Draw(t, "series")])
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				for range rapid.SampledFrom([]int{1, 2, 5, 100}).Draw(t, "count") {
					h := &shownSeries{value: value.Draw(t, "value")}
					var p []byte
					if rapid.IntRange(0, 3).Draw(t, "hidden") > 0 {
						h.shown = next
						p = longPrefix(next)
					}
					next++
					h.block, h.slot = f.Add(p, metrics.ShardKey(rapid.Byte().Draw(t, "key")), h.value)
					series = append(series, h)
				}
			},
			"set": func(t *rapid.T) {
				each(t, rapid.IntRange(1, 50).Draw(t, "count"), func(h *shownSeries) {
					h.value = value.Draw(t, "value")
					h.block.Set(h.slot, h.value)
				})
			},
			"show": func(t *rapid.T) {
				each(t, 1, func(h *shownSeries) {
					h.shown = next
					next++
					h.block.Show(h.slot, longPrefix(h.shown), 1)
				})
			},
			"hide": func(t *rapid.T) {
				each(t, 1, func(h *shownSeries) {
					h.shown = 0
					h.block, h.slot = h.block.Hide(h.slot)
				})
			},
			"remove": func(t *rapid.T) {
				each(t, rapid.SampledFrom([]int{1, 20, 200}).Draw(t, "count"), func(h *shownSeries) {
					h.block.Remove(h.slot)
					i := slices.Index(series, h)
					series = slices.Delete(series, i, i+1)
				})
			},
			"type": func(t *rapid.T) {
				header.Type = rapid.SampledFrom([]metrics.Type{metrics.Untyped, metrics.Counter, metrics.Gauge}).Draw(t, "type")
			},
			"dropProto": func(*rapid.T) { generations.dropProto() },
			"borrow": func(t *rapid.T) {
				begin := rapid.SampledFrom([]func(io.Writer, *Generations, metrics.Shard) *Scrape{NewText, NewProto}).Draw(t, "format")
				w := &segmented{}
				scrapeOf(t, w, f, header, begin)
				for _, p := range w.parts {
					if s, ok := p.(metrics.Segment); ok {
						borrowers = append(borrowers, borrow(s))
					}
				}
			},
			"return": func(t *rapid.T) {
				if len(borrowers) > 0 {
					i := rapid.IntRange(0, len(borrowers)-1).Draw(t, "borrowing")
					borrowers[i].release()
					borrowers = slices.Delete(borrowers, i, i+1)
				}
			},
			"": func(t *rapid.T) {
				want := make(map[string]float64)
				for _, h := range series {
					if h.shown > 0 {
						want[fmt.Sprint(h.shown)] = h.value
					}
					if got := h.block.Value(h.slot); got != h.value {
						t.Fatalf("value is %v, not %v", got, h.value)
					}
				}
				require.True(t, maps.Equal(want, read(t, &generations, f, header)))
				for _, l := range borrowers {
					require.True(t, bytes.Equal(l.was, l.data), "what is borrowed changes")
				}
				if len(series) == 0 {
					require.Empty(t, f.blocks)
					require.Empty(t, f.roomy)
				}
			},
		})
	})
}

// borrowing has what was borrowed of a segment, and a copy of it.
type borrowing struct {
	segment   metrics.Segment
	data, was []byte
}

func borrow(s metrics.Segment) borrowing {
	data := s.Borrow()
	return borrowing{s, data, bytes.Clone(data)}
}

func (l borrowing) release() {
	if l.data != nil {
		l.segment.Release()
	}
}

func TestHeader(t *testing.T) {
	for _, c := range []struct {
		name   string
		series bool
		always bool
		text   string
		proto  bool
	}{
		{"empty", false, false, "", false},
		{"empty, always", false, true, "# HELP f Help.\n# TYPE f gauge\n", false},
		{"series", true, false, "# HELP f Help.\n# TYPE f gauge\nf{i=\"1\"}    2\n", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var generations Generations
			f := NewFamily(&generations, "f")
			_, _ = f.Add(nil, 0, 1) // hidden
			if c.series {
				f.Add(prefix(1), 0, 2)
			}
			var txt, pb bytes.Buffer
			h := Header{Help: "Help.", Type: metrics.Gauge, Always: c.always}
			out := NewText(&txt, &generations, metrics.Shard{})
			require.NoError(t, out.Close(out.Family(f, h)))
			require.Equal(t, c.text, txt.String())
			p := NewProto(&pb, &generations, metrics.Shard{})
			require.NoError(t, p.Close(p.Family(f, h)))
			require.Equal(t, c.proto, pb.Len() > 0)
		})
	}
}

// A series that moves while a scrape goes on is not shown twice.
func TestScrapeShowsWhatWasThereWhenItBegan(t *testing.T) {
	var generations Generations
	first, second := NewFamily(&generations, "f"), NewFamily(&generations, "g")
	b, slot := first.Add(prefix(1), 0, 1)
	var txt bytes.Buffer
	out := NewText(&txt, &generations, metrics.Shard{})
	require.NoError(t, out.Family(first, Header{Type: metrics.Gauge}))
	b.Remove(slot)
	second.Add(prefix(1), 0, 1)
	shown, hidden := second.Add(nil, 0, 2)
	shown.Show(hidden, prefix(2), 1)
	require.NoError(t, out.Close(out.Family(second, Header{Type: metrics.Gauge})))
	require.Equal(t, "# TYPE f gauge\nf{i=\"1\"}    1\n", txt.String())

	var pb bytes.Buffer
	p := NewProto(&pb, &generations, metrics.Shard{})
	hidden2, slot2 := second.Add(prefix(3), 0, 3)
	require.NoError(t, p.Close(p.Family(second, Header{Type: metrics.Gauge})))
	var m dto.MetricFamily
	require.NoError(t, expfmt.NewDecoder(&pb, expfmt.FmtProtoDelim).Decode(&m))
	require.Len(t, m.Metric, 2)
	require.Empty(t, m.ProtoReflect().GetUnknown(), "padding")
	hidden2.Remove(slot2)

	txt.Reset()
	out = NewText(&txt, &generations, metrics.Shard{})
	require.NoError(t, out.Close(out.Family(second, Header{Type: metrics.Gauge})))
	require.Equal(t, "# TYPE g gauge\nf{i=\"1\"}    1\nf{i=\"2\"}    2\n", txt.String())
}

// Many long lines do not make a block that takes long to copy.
func TestBlocksAreBounded(t *testing.T) {
	var generations Generations
	f := NewFamily(&generations, "f")
	long := append(bytes.Repeat([]byte("x"), 4096), ' ')
	for range 3 * blockSlots {
		f.Add(long, 0, 1)
	}
	for _, b := range f.blocks {
		require.LessOrEqual(t, len(b.text.buf), blockBytes+2*len(long))
	}
}

// onWrite calls a function before its first write.
type onWrite struct {
	bytes.Buffer
	call func()
}

func (w *onWrite) Write(p []byte) (int, error) {
	if w.call != nil {
		w.call()
		w.call = nil
	}
	return w.Buffer.Write(p)
}

// Blocks that go away while a scrape is under way do not disturb the others.
func TestBlocksThatGoDuringAScrape(t *testing.T) {
	var generations Generations
	f := NewFamily(&generations, "f")
	const n = 30_000
	gone := make(map[string]bool)
	var remove []func()
	for i := range n {
		b, slot := f.Add(prefix(i), metrics.ShardKey(i), 1)
		if i < 5000 {
			gone[string(prefix(i))] = true
			remove = append(remove, func() { b.Remove(slot) })
		}
	}
	w := &onWrite{call: func() {
		for _, r := range remove {
			r()
		}
	}}
	out := NewText(w, &generations, metrics.Shard{})
	require.NoError(t, out.Close(out.Family(f, Header{})))
	got := make(map[string]int)
	for line := range strings.Lines(w.String()) {
		got[line[:strings.IndexByte(line, ' ')+1]]++
	}
	for i := range n {
		p := string(prefix(i))
		if count := got[p]; count != 1 && !gone[p] {
			t.Fatalf("%s is there %d times", p, count)
		}
	}
}

// Text that grew with its lines, and was left by them, is given back.
func TestMemoryIsGivenBack(t *testing.T) {
	var generations Generations
	f := NewFamily(&generations, "f")
	type place struct {
		b    *Block
		slot uint32
	}
	var places []place
	for i := range 10 * blockSlots {
		b, slot := f.Add(append(prefix(i)[:1], bytes.Repeat([]byte("x"), 200)...), 0, 1)
		places = append(places, place{b, slot})
	}
	size := func() (n, used int) {
		out := NewText(io.Discard, &generations, metrics.Shard{})
		require.NoError(t, out.Close(out.Family(f, Header{})))
		for _, b := range f.blocks {
			n += cap(b.text.buf)
			used += b.text.size()
		}
		return n, used
	}
	full, used := size()
	require.Less(t, float64(full), 1.1*float64(used))
	for i, p := range places {
		if i%10 != 0 {
			p.b.Remove(p.slot)
		}
	}
	n, _ := size()
	require.Less(t, n, full/5)
	blocks := len(f.blocks)
	for i := range places {
		if i%10 != 0 {
			f.Add(prefix(i), metrics.ShardKey(i), 1)
		}
	}
	require.Len(t, f.blocks, blocks, "slots that were given back are used")
}

// Reports and scrapes go on while series come and go. A scrape has each of the
// steady series once, with a value that it had.
func TestConcurrentUse(t *testing.T) {
	var generations Generations
	f := NewFamily(&generations, "f")
	const steady = 1000
	var (
		blocks [steady]*Block
		slots  [steady]uint32
	)
	for i := range steady {
		blocks[i], slots[i] = f.Add(prefix(i), metrics.ShardKey(i), 0)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	loop := func(step func(i int)) {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					step(i)
				}
			}
		})
	}
	loop(func(i int) { blocks[i%steady].Set(slots[i%steady], float64(i)*1000.5) })
	loop(func(i int) {
		b, slot := f.Add(prefix(steady+i%10), metrics.ShardKey(i), 1)
		b.Set(slot, float64(i))
		b, slot = b.Hide(slot)
		b.Show(slot, prefix(steady+i%10), 1)
		b.Remove(slot)
	})
	loop(func(i int) {
		w := &segmented{}
		begin := []func(io.Writer, *Generations, metrics.Shard) *Scrape{NewText, NewProto}[i%2]
		s := begin(w, &generations, metrics.Shard{})
		assert.NoError(t, s.Close(s.Family(f, Header{Type: metrics.Gauge})))
		for _, p := range w.parts {
			if s, ok := p.(metrics.Segment); ok {
				l := borrow(s)
				runtime.Gosched()
				assert.True(t, bytes.Equal(l.was, l.data), "what is borrowed changes")
				l.release()
			}
		}
	})
	for range 50 {
		got := make(map[string]bool)
		var txt bytes.Buffer
		out := NewText(&txt, &generations, metrics.Shard{})
		require.NoError(t, out.Close(out.Family(f, Header{Type: metrics.Gauge})))
		for line := range strings.Lines(txt.String()) {
			name, _, _ := strings.Cut(line, "}")
			require.False(t, got[name], "%s is there twice", line)
			got[name] = true
		}
		for i := range steady {
			require.True(t, got[fmt.Sprintf(`f{i="%d"`, i)])
		}
		var pb bytes.Buffer
		p := NewProto(&pb, &generations, metrics.Shard{})
		require.NoError(t, p.Close(p.Family(f, Header{Type: metrics.Gauge})))
	}
	close(stop)
	wg.Wait()
}

// failing takes some bytes and then fails.
type failing struct {
	left   int
	failed int
}

var errGone = errors.New("gone")

func (w *failing) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		w.failed++
		return 0, errGone
	}
	return len(p), nil
}

func TestWriteErrorsEndTheScrape(t *testing.T) {
	var generations Generations
	f := NewFamily(&generations, "f")
	for i := range 50_000 {
		f.Add(prefix(i), metrics.ShardKey(i), 1)
	}
	for _, left := range []int{0, 200 << 10, 700 << 10} {
		w := &failing{left: left}
		out := NewText(w, &generations, metrics.Shard{})
		err := out.Family(f, Header{Help: "x"})
		require.ErrorIs(t, out.Close(err), errGone)
		require.Equal(t, 1, w.failed)
		w = &failing{left: left}
		p := NewProto(w, &generations, metrics.Shard{})
		require.ErrorIs(t, p.Close(p.Family(f, Header{})), errGone)
		require.Equal(t, 1, w.failed)
	}
}
