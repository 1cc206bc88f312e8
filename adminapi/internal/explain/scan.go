package explain

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/prometheus/model/labels"

	dto "github.com/prometheus/client_model/go"
)

// Bounds of what is kept of a scrape.
const (
	maxServed = 20
	// maxCompared lines of the families are compared with a selector in part. To parse one
	// takes some 2 us.
	maxCompared = 10_000
)

// scan reads what a scrape has of some families, line by line, and keeps what matches.
type scan struct {
	ctx   context.Context
	query *query
	// rest is the beginning of a line.
	rest []byte
	// name is that of the line before, wanted is true if it matches.
	name   []byte
	wanted bool

	// served are the first series that match, count is the number of all.
	served []string
	count  int
	// lines is the number of series of the name. labels are those of the first ones.
	lines  int
	labels map[string]bool
	// similar is the one of these with the largest similarity; empty: there is none.
	similar    string
	similarity int
}

// scanned reads what a scrape would have. own are the service's own families, of which
// those that are passed are not served.
func (e *Explainer) scanned(ctx context.Context, q *query, own map[string]*dto.MetricFamily, passed map[string]bool) (*scan, error) {
	s := &scan{ctx: ctx, query: q, labels: make(map[string]bool), similarity: -1}
	encoder := expfmt.NewEncoder(s, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, name := range slices.Sorted(maps.Keys(own)) {
		if passed[name] || !q.wants(name) {
			continue
		}
		if err := encoder.Encode(own[name]); err != nil {
			return nil, fmt.Errorf("read the service's own families: %w", err)
		}
	}
	if err := e.Series.WriteFamilies(s, e.Pushed, q.wants); err != nil {
		return nil, fmt.Errorf("read families: %w", err)
	}
	return s, nil
}

// Write takes a part of a scrape. It returns the error of the context.
func (s *scan) Write(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	for line := range bytes.Lines(p) {
		if line[len(line)-1] != '\n' {
			s.rest = append(s.rest, line...)
			break
		}
		if len(s.rest) > 0 {
			s.rest = append(s.rest, line...)
			line = s.rest
		}
		s.take(line)
		s.rest = s.rest[:0]
	}
	return len(p), nil
}

// take takes a line.
func (s *scan) take(line []byte) {
	if line[0] == '#' {
		return
	}
	series := bytes.TrimRight(line[:bytes.LastIndexByte(line, ' ')], " ")
	name := series
	if i := bytes.IndexByte(series, '{'); i >= 0 {
		name = series[:i]
	}
	if !bytes.Equal(name, s.name) { // mostly it is that of the line before
		s.name, s.wanted = append(s.name[:0], name...), s.query.matchesName(string(name))
	}
	if !s.wanted {
		return
	}
	s.lines++
	may := s.query.mayMatch(series)
	if !may && s.lines > maxCompared {
		return
	}
	parsed, err := selectors.ParseMetric(string(series))
	if err != nil {
		return // it cannot be: the text format is a part of it
	}
	matched := s.query.countMatched(parsed)
	if matched == len(s.query.matchers) {
		if s.count++; s.count <= maxServed {
			s.served = append(s.served, string(series))
		}
	}
	if s.lines > maxCompared {
		return
	}
	parsed.Range(func(l labels.Label) { s.labels[l.Name] = true })
	if similarity := s.query.similarity(parsed, matched); similarity > s.similarity {
		s.similar, s.similarity = string(series), similarity
	}
}

// absentLabels returns the labels that the selector asks for and that no series of the
// name has.
func (s *scan) absentLabels() (names []string) {
	for _, m := range s.query.matchers {
		if !s.labels[m.Name] && !m.Matches("") && !slices.Contains(names, m.Name) {
			names = append(names, m.Name)
		}
	}
	return names
}

// otherLabels explains that series of the name are served, with other labels than those
// that the selector asks for.
func (s *scan) otherLabels() Finding {
	f := Finding{Cause: OtherLabels, Text: fmt.Sprintf("%s served, none with these labels, for example %s", countOf(s.lines, "series of the name is", "series of the name are"), s.similar)}
	f.Remedy = "Compare the labels with those of the example."
	if absent := s.absentLabels(); len(absent) > 0 {
		f.Text = fmt.Sprintf("%s served, none of which has the label %s, for example %s",
			countOf(s.lines, "series of the name is", "series of the name are"), strings.Join(absent, ", "), s.similar)
		f.Remedy = "Leave the label out of the selector."
	}
	return f
}
