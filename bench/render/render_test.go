package render

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/bench/figure"
	"github.com/coder/agentstatsd/bench/peer"
	"github.com/coder/agentstatsd/bench/scrape"
	"github.com/coder/agentstatsd/bench/stream"
	"github.com/coder/agentstatsd/bench/update"
)

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.004: "0", 0.0123: "0.01", 1.234: "1.23", 9.99: "9.99", 9.996: "10.0", 12.34: "12.3",
		99.96: "100", 123.4: "123", 1234.5: "1,235", 1234567: "1,234,567", -12.34: "-12.3",
	} {
		require.Equal(t, want, number(v), v)
	}
	require.Equal(t, "?", number(math.NaN()))
	require.Equal(t, "-1,234", grouped(-1234))
}

func TestBars(t *testing.T) {
	b := bar{unit: times, limit: 2, values: func(r figure.Results) []float64 { return r.Values(figure.Key{}) }}
	results := func(values ...float64) figure.Results {
		run := new(figure.Run)
		for _, v := range values {
			run.Add(figure.Key{}, v)
		}
		return figure.Results{Bench: run}
	}
	require.Equal(t, seen{text: "not measured"}, b.see(figure.Results{}))
	require.Equal(t, seen{"1.50×", true, true}, b.see(results(1.5)))
	require.Equal(t, seen{"1.50× (1.00× to 9.00×)", true, true}, b.see(results(1, 1.5, 9)), "the median counts")
	b.always = true
	require.Equal(t, seen{"1.50× (1.00× to 9.00×)", true, false}, b.see(results(1, 1.5, 9)), "the worst counts")
	b.always, b.atLeast = false, true
	require.False(t, b.see(results(1.5)).met)
	require.True(t, b.see(results(2)).met)
}

// full are results with every figure: agentstatsd takes 2, all others many times
// that, the limits less.
func full() figure.Results {
	bench := &figure.Run{
		Date: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC), Seconds: 61,
		Machine: figure.Machine{CPU: "A & B", Cores: 2, MemoryBytes: 8 << 30, Kernel: "6.1", Go: "go1.26", Platform: "linux/amd64"},
		Modules: []figure.Module{{Path: "example.com/m", Version: "v1.2.3"}},
		Notes:   []string{"A note."},
	}
	peers := &figure.Run{Machine: bench.Machine}
	for _, g := range groups() {
		run := bench
		if g.own.Section == peer.Section {
			run = peers
		}
		run.Add(g.own, 2)
		for i, row := range g.rows {
			v := 2 * math.Pow(30, float64(i+1)/2)
			if row.limit {
				v = 0.7
			}
			run.Add(row.key, v)
		}
	}
	bench.Add(updated(update.Agentstatsd, update.Allocations), 0)
	bench.Add(figure.Key{Section: stream.AcksSection, Case: stream.AcksCase, Subject: stream.Scraped, Metric: stream.AckMax}, 7)
	return figure.Results{Bench: bench, Peers: peers}
}

func TestPage(t *testing.T) {
	page := string(Page(full()))
	for _, want := range []string{
		"2 January 2026, in 1m1s, on A & B with 2 cores and 8 GiB, Linux 6.1, go1.26 linux/amd64.",
		"`example.com/m` v1.2.3", "- A note.",
		"| longest ack at a third of a core, 1M series scraped every 5 s | at most 50 ms | 7.00 ms | yes |",
		"| longest wait for a lock of the service meanwhile | below 1 ms | 0 ms | yes |",
		"| idle stream on its own connection, resident: TLS | at most 58 KiB | not measured |  |",
		"**1,000,000 series, text plain**", "There were none.", "| " + peer.Pushgateway + " |",
	} {
		require.Contains(t, page, want)
	}
	require.NotContains(t, page, "NaN")
	require.NotContains(t, page, "%!")
}

func TestLockWaits(t *testing.T) {
	r := full()
	require.Equal(t, []float64{0}, lockWaits(r))
	r[Bench].Add(figure.Key{Section: stream.LocksSection, Case: stream.LocksOwn, Subject: "a < b", Metric: stream.LockAtMost}, 3)
	require.Equal(t, []float64{3}, lockWaits(r))
	require.Contains(t, string(Page(r)), "| the service | `a < b` |")
	require.Nil(t, lockWaits(figure.Results{}))
}

// TestPicture draws all there is, and nothing, as well-formed XML whose texts
// stay within the picture.
func TestPicture(t *testing.T) {
	for name, results := range map[string]figure.Results{"full": full(), "empty": {}} {
		t.Run(name, func(t *testing.T) {
			d := xml.NewDecoder(bytes.NewReader(Picture(results)))
			bars := 0
			for {
				token, err := d.Token()
				if errors.Is(err, io.EOF) {
					break
				}
				require.NoError(t, err)
				e, ok := token.(xml.StartElement)
				if !ok {
					continue
				}
				attrs := make(map[string]string)
				for _, a := range e.Attr {
					attrs[a.Name.Local] = a.Value
				}
				switch {
				case e.Name.Local == "rect" && attrs["class"] != "bg":
					bars++
				case attrs["class"] == "v":
					x, err := strconv.ParseFloat(attrs["x"], 64)
					require.NoError(t, err)
					var text string
					require.NoError(t, d.DecodeElement(&text, &e))
					require.Less(t, x+7*float64(len([]rune(text))), float64(pictureWidth), text)
				}
			}
			if name == "full" {
				want := 0
				for _, g := range groups() {
					want += len(g.rows)
				}
				require.Equal(t, want, bars)
			}
		})
	}
}

func TestScale(t *testing.T) {
	s := newScale(0.5, 250)
	require.InDelta(t, chartLeft, s.x(s.least), 1e-6)
	require.InDelta(t, chartRight, s.x(s.most), 1e-6)
	require.Equal(t, []float64{1, 10, 100}, s.ticks())
	require.Less(t, s.least, 0.5)
	require.Greater(t, s.most, 250.0)
}

func TestSubjectsAreNamed(t *testing.T) {
	require.Contains(t, scrape.Subjects, scrape.Agentstatsd)
	require.Contains(t, stream.IngestSubjects, stream.Discard)
}
