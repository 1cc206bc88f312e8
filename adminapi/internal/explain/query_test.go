package explain

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// A selector is one of Prometheus, within bounds.
func TestParse(t *testing.T) {
	for selector, want := range map[string]string{
		"":                           "want a series selector of Prometheus: unknown position: parse error: unexpected end of input",
		"{":                          "want a series selector of Prometheus: 1:2: parse error: unexpected end of input",
		"rate(x[5m])":                "want a series selector of Prometheus: 1:5: parse error: ",
		`{a=~"("}`:                   "want a series selector of Prometheus: 1:2: parse error: error parsing regexp",
		`{a=""}`:                     "want a series selector of Prometheus: want a name, or a matcher that an absent label does not match",
		`{a=~".*"}`:                  "want a series selector of Prometheus: want a name, or a matcher that an absent label does not match",
		strings.Repeat("x", 8<<10+1): "want a series selector of Prometheus: want at most 8192 bytes, got 8193",
		"x{" + strings.Repeat(`a="b",`, 64) + "}": "want a series selector of Prometheus: want at most 64 matchers, got 65",
	} {
		_, err := parse(selector)
		require.ErrorIs(t, err, ErrSelector)
		require.ErrorContains(t, err, want)
	}
	for selector, name := range map[string]string{"x": "x", `{"bad-name"}`: "bad-name", `{__name__=~"x|y"}`: "", `{a!=""}`: ""} {
		q, err := parse(selector)
		require.NoError(t, err)
		require.Equal(t, name, q.name)
	}
}

// A series in the text format matches as its labels do, of whatever type the matchers are.
func TestMatches(t *testing.T) {
	const series = `x{a="1",b="say \"hi\" \\ {}",path="/"}`
	for selector, want := range map[string]bool{
		"x": true, "y": false, `{__name__=~"x|y"}`: true,
		`x{a="1"}`: true, `x{a="2"}`: false, `x{a!="2"}`: true, `x{a=~"[0-9]"}`: true, `x{a!~"[0-9]"}`: false,
		`x{b="say \"hi\" \\ {}"}`: true, `x{b='say "hi" \\ {}'}`: true, `x{none=""}`: true, `x{a=""}`: false, `x{h="/"}`: false,
	} {
		q, err := parse(selector)
		require.NoError(t, err)
		require.Equal(t, want, q.matchesText(series), selector)
		s := &scan{ctx: t.Context(), query: q, labels: make(map[string]bool), similarity: -1}
		s.take([]byte(series + "    1.5\n"))
		require.Equal(t, want, s.count == 1, selector)
	}
}

// The name of a histogram's line leads to its family.
func TestFamily(t *testing.T) {
	isFamily := func(name string) bool { return name == "h" || name == "x_count" || name == "x" }
	for name, want := range map[string]string{"h": "h", "h_bucket": "h", "h_sum": "h", "x_count": "x_count", "y_sum": "y_sum"} {
		require.Equal(t, want, family(name, isFamily))
	}
	q, err := parse(`h_bucket{le="1"}`)
	require.NoError(t, err)
	require.True(t, q.wants("h"))
	require.False(t, q.wants("h_bucket_x"))
}

// How far an agent matches says what of a selector is wrong.
func TestMatchesAgent(t *testing.T) {
	q, err := parse(`x{username="ada",workspace_name=~"ws.*",agent_name!="dev",template_name="t"}`)
	require.NoError(t, err)
	for want, i := range []agent.Identity{
		{Username: "eve"}, {Username: "ada", WorkspaceName: "w"}, {Username: "ada", WorkspaceName: "ws", AgentName: "dev"},
		{Username: "ada", WorkspaceName: "ws", AgentName: "main", TemplateName: "u"}, {Username: "ada", WorkspaceName: "ws", AgentName: "main", TemplateName: "t"},
	} {
		require.Equal(t, want, q.matchesAgent(&i))
	}
	require.Equal(t, `username="ada",workspace_name=~"ws.*"`, q.identityUpTo(2))
}

// However a scrape is cut, each series is counted once, and the first 20 are kept.
func TestScan(t *testing.T) {
	var text strings.Builder
	text.WriteString("# HELP x Help.\n# TYPE x gauge\n")
	for n := range 50 {
		fmt.Fprintf(&text, "x{a=\"%d\",b=\"y\"}    1\nxy{a=\"1\"} 1\n", n)
	}
	q, err := parse(`x{b="y"}`)
	require.NoError(t, err)
	for size := 1; size < 100; size += 7 {
		s := &scan{ctx: t.Context(), query: q, labels: make(map[string]bool), similarity: -1}
		for rest := text.String(); rest != ""; {
			n := min(size, len(rest))
			_, err := s.Write([]byte(rest[:n]))
			require.NoError(t, err)
			rest = rest[n:]
		}
		require.Equal(t, 50, s.count)
		require.Equal(t, 50, s.lines)
		require.Len(t, s.served, 20)
		require.Equal(t, `x{a="0",b="y"}`, s.served[0])
		require.Equal(t, map[string]bool{"__name__": true, "a": true, "b": true}, s.labels)
	}
}

// BenchmarkScan reads lines of a family, of which few match.
func BenchmarkScan(b *testing.B) {
	for name, selector := range map[string]string{"equal": `x{workspace_name="ws7"}`, "regexp": `x{workspace_name=~"ws7|ws8"}`} {
		b.Run(name, func(b *testing.B) {
			q, err := parse(selector)
			require.NoError(b, err)
			var text []byte
			for n := range 1000 {
				text = fmt.Appendf(text, "x{agent_name=\"main\",path=\"/a\",template_name=\"docker\",username=\"user%d\",workspace_name=\"ws%d\"}    1\n", n, n)
			}
			s := &scan{ctx: b.Context(), query: q, labels: make(map[string]bool), similarity: -1, lines: maxCompared}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Write(text); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/line")
		})
	}
}
