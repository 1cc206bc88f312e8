package metrics

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the catalogue into docs/metrics.md")

const (
	tablesBegin = "<!-- families: made by make generate -->\n"
	tablesEnd   = "<!-- end of families -->\n"
)

// TestDocsMetrics keeps the tables of docs/metrics.md equal to the catalogue.
func TestDocsMetrics(t *testing.T) {
	path := filepath.Join("..", "docs", "metrics.md")
	page, err := os.ReadFile(path)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(page), tablesBegin)
	require.True(t, ok, "docs/metrics.md has no line %q", tablesBegin)
	tables, after, ok := strings.Cut(rest, tablesEnd)
	require.True(t, ok, "docs/metrics.md has no line %q", tablesEnd)

	want := docsTables()
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(before+tablesBegin+want+tablesEnd+after), 0o644))
		return
	}
	require.Equal(t, want, tables, "run make generate")
}

// docsTables renders the catalogue as Markdown, a table for each area.
func docsTables() string {
	var b strings.Builder
	for _, area := range []struct {
		title, text, last string
		families          []Family
		lastOf            func(*Family) string
	}{
		{
			"Agents", "What agents report and forward, and what the service knows of their state.", "grouped by",
			agentFamilies, func(f *Family) string { return string(f.Group) },
		},
		{"Metadata", "What becomes of the agents' metadata on its way to the database.", "", metadataFamilies, nil},
		{
			"coderd", "Pushed by the instances of coderd. The value is as each instance has it.", "merged by",
			coderdFamilies, func(f *Family) string { return string(f.Merge) },
		},
		{"The process", "Of agentstatsd itself, from the client library.", "", runtimeFamilies, nil},
	} {
		fmt.Fprintf(&b, "\n### %s\n\n%s\n\n| family | type | labels | help | value |", area.title, area.text)
		if area.lastOf != nil {
			fmt.Fprintf(&b, " %s |", area.last)
		}
		b.WriteString("\n| --- | --- | --- | --- | --- |")
		if area.lastOf != nil {
			b.WriteString(" --- |")
		}
		b.WriteByte('\n')
		for i := range area.families {
			f := &area.families[i]
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |", f.Name, docsType(f), docsLabels(f.Labels), cell(f.Help), cell(f.Source))
			if area.lastOf != nil {
				fmt.Fprintf(&b, " %s |", cell(area.lastOf(f)))
			}
			b.WriteByte('\n')
		}
	}
	b.WriteString("\n### Newer families of Coder\n\n" +
		"Documented by newer versions of Coder than the tables above. Their help is what coderd pushes. How they merge\n" +
		"follows from what they count as far as Coder says it, which is less certain than above.\n\n" +
		"| family | type | labels | whose | merged by |\n| --- | --- | --- | --- | --- |\n")
	for _, f := range newerFamilies {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", f.Name, f.Type, docsLabels(f.Labels), f.Owner, f.Merge)
	}
	b.WriteByte('\n')
	return b.String()
}

// docsType is a family's type, with the buckets of a histogram.
func docsType(f *Family) string {
	var b strings.Builder
	b.WriteString(f.Type.String())
	for i, bound := range f.Buckets {
		if i == 0 {
			b.WriteString(": ")
		} else {
			b.WriteString(", ")
		}
		b.Write(AppendTextValue(nil, bound))
	}
	if n := f.Native; n != nil {
		fmt.Fprintf(&b, "; native: factor %v, %d buckets, reset after %.0f h", n.BucketFactor, n.MaxBuckets, n.MinReset.Hours())
	}
	return b.String()
}

func docsLabels(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return "`" + strings.Join(names, "`, `") + "`"
}

// cell is text that may stand in a table; the names in it are not emphasis.
func cell(s string) string {
	return strings.NewReplacer("|", `\|`, "_", `\_`, "*", `\*`).Replace(s)
}
