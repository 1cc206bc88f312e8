package arena

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/metrics"
)

// Borrowed bytes do not change, also when all of the block's lines are replaced. When
// they are returned, the block may change its memory again.
func TestLent(t *testing.T) {
	for name, format := range both {
		t.Run(name, func(t *testing.T) {
			var generations Generations
			f, blocks, slots := lines(&generations, firstSlots+64+blockSlots)
			borrowAll := func() (borrowers []borrowing) {
				w := &segmented{}
				scrapeOf(t, w, f, Header{}, format.begin)
				for _, p := range w.parts {
					if s, ok := p.(metrics.Segment); ok {
						borrowers = append(borrowers, borrow(s))
					}
				}
				return borrowers
			}
			borrowed := borrowAll()
			require.Len(t, borrowed, 1)
			require.NotEmpty(t, borrowed[0].data)
			last := blocks[len(blocks)-1]
			for i, b := range blocks {
				if b == last {
					blocks[i], slots[i] = b.Hide(slots[i])
				}
			}
			for i, b := range blocks {
				if b == last {
					b.Set(slots[i], 1e6)
					b.Show(slots[i], longPrefix(len(blocks)+i), 0)
				}
			}
			again := borrowAll()
			require.NotEqual(t, borrowed[0].data, again[0].data)
			require.Equal(t, borrowed[0].was, borrowed[0].data)
			again[0].release()
			again = borrowAll()
			require.Same(t, &again[0].data[0], &borrowAll()[0].data[0])
			last.Set(0, 7)
			changed := borrowAll()
			require.NotSame(t, &again[0].data[0], &changed[0].data[0])
			require.Equal(t, again[0].was, again[0].data)
			changed[0].release()
			last.Set(0, 8)
			inPlace := borrowAll()
			require.Same(t, &changed[0].data[0], &inPlace[0].data[0], "patched in place")

			// Nothing is borrowed of a block whose lines have gone.
			w := &segmented{}
			scrapeOf(t, w, f, Header{}, format.begin)
			for i, b := range blocks {
				if b == last {
					blocks[i], slots[i] = b.Hide(slots[i])
				}
			}
			require.NotEmpty(t, w.bytes(t))
			require.False(t, last.text.borrowed())
		})
	}
}

// Scrapes that are under way at the same time compress each block once.
func TestScrapesShareWhatTheyCompress(t *testing.T) {
	for name, format := range both {
		t.Run(name, func(t *testing.T) {
			begin := format.begin
			var generations Generations
			f, blocks, slots := lines(&generations, 4*blockSlots)
			h := Header{Type: metrics.Gauge}
			open := func() (*segmented, *Scrape) {
				w := &segmented{zip: true}
				return w, begin(w, &generations, metrics.Shard{})
			}
			same := func(a, b []metrics.Deflated) (n int) {
				require.Len(t, b, len(a))
				for i := range a {
					if &a[i].Data[0] == &b[i].Data[0] {
						n++
					}
				}
				return n
			}
			first, s1 := open()
			second, s2 := open()
			third, s3 := open()
			require.NoError(t, s1.Family(f, h))
			require.NoError(t, s2.Family(f, h))
			require.NoError(t, s3.Family(f, h))
			text := first.bytes(t)
			require.True(t, bytes.Equal(text, second.bytes(t)))
			// The first was handed its Deflater's own, the others what is kept of it.
			blocks[0].Set(slots[0], 12345)
			blocks[len(blocks)-1].Set(slots[len(blocks)-1], 12345)
			require.True(t, bytes.Equal(text, third.bytes(t)), "made since it began")
			require.Equal(t, len(first.made), same(second.made, third.made))
			require.GreaterOrEqual(t, len(first.made), 4)

			// A scrape that begins now shares what has not changed.
			late, s4 := open()
			require.NoError(t, s4.Family(f, h))
			got := late.bytes(t)
			require.False(t, bytes.Equal(text, got))
			require.Equal(t, len(first.made)-1, same(second.made, late.made), "all but the last block")
			var plain bytes.Buffer
			scrapeOf(t, &plain, f, h, begin)
			require.True(t, bytes.Equal(plain.Bytes(), got))

			// What is too young for a scrape is not shared with it.
			early, s5 := open()
			require.NoError(t, s5.Family(f, h))
			for _, s := range []*Scrape{s1, s2, s3} {
				require.NoError(t, s.Close(nil))
			}
			blocks[500].Remove(slots[500])
			blocks[500], slots[500] = f.Add(longPrefix(500), 0, 1)
			younger, s6 := open()
			require.NoError(t, s6.Family(f, h))
			has := func(data []byte) bool {
				_, there := parse(t, data, format.is)["500"]
				return there
			}
			require.True(t, has(younger.bytes(t)))
			require.False(t, has(early.bytes(t)))

			require.NotEmpty(t, generations.sharing)
			for _, s := range []*Scrape{s4, s5, s6} {
				require.NoError(t, s.Close(nil))
			}
			require.Empty(t, generations.sharing)
			for _, b := range f.blocks {
				for i := range b.shared.formats {
					require.Nil(t, b.shared.formats[i].Load(), "nothing is kept")
				}
			}
			// One alone keeps nothing.
			alone, s := open()
			require.NoError(t, s.Family(f, h))
			alone.bytes(t)
			require.Empty(t, generations.sharing)
			require.NoError(t, s.Close(nil))
		})
	}
}

// What was made for one scrape is not taken for another that it does not fit.
func TestScrapesShareOnlyWhatFits(t *testing.T) {
	for name, format := range both {
		t.Run(name, func(t *testing.T) {
			var generations Generations
			f, blocks, slots := lines(&generations, 2*blockSlots)
			h := Header{Type: metrics.Gauge}
			open := func() (*segmented, *Scrape) {
				w := &segmented{zip: true}
				s := format.begin(w, &generations, metrics.Shard{})
				return w, s
			}
			has := func(w *segmented, i int) bool {
				_, there := parse(t, w.bytes(t), format.is)[fmt.Sprint(i)]
				return there
			}
			family := func(s *Scrape, h Header) { require.NoError(t, s.Family(f, h)) }
			const large = 500 // is in a block that makes a segment

			// One leaves out what is too young for it, but not for the other.
			first, s1 := open()
			family(s1, h)
			blocks[large].Show(slots[large], longPrefix(large), 0)
			second, s2 := open()
			family(s2, h)
			require.False(t, has(first, large))
			require.True(t, has(second, large))

			// One shows what has gone since it began, the other does not.
			third, s3 := open()
			family(s3, h)
			blocks[large], slots[large] = blocks[large].Hide(slots[large])
			fourth, s4 := open()
			family(s4, h)
			require.False(t, has(fourth, large))
			require.True(t, has(third, large))

			// Two that differ in the type, with nothing new. Values are of the type.
			counter, s5 := open()
			family(s5, Header{Type: metrics.Counter})
			gauge, s6 := open()
			family(s6, h)
			require.Equal(t, parse(t, counter.bytes(t), format.is), parse(t, gauge.bytes(t), format.is))
			for _, s := range []*Scrape{s1, s2, s3, s4, s5, s6} {
				require.NoError(t, s.Close(nil))
			}
		})
	}
}
