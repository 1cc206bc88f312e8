package explain

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// ErrSelector is wrapped when a selector cannot be used.
var ErrSelector = errors.New("want a series selector of Prometheus")

// Bounds of a selector. Each matcher is tried on each series of the families.
const (
	maxSelectorBytes = 8 << 10
	maxMatchers      = 64
)

// selectors parses selectors, and series in the text format, of which they are a superset.
var selectors = parser.NewParser(parser.Options{})

// query is a selector. Nothing changes it.
type query struct {
	matchers []*labels.Matcher
	// name of the metric; empty: the selector does not say which.
	name string
	// parts are in each series in the text format that matches, beside its name.
	parts [][]byte
	// identity are the matchers of labels that name agents.
	identity []*labels.Matcher
}

func parse(selector string) (*query, error) {
	if len(selector) > maxSelectorBytes {
		return nil, fmt.Errorf("%w: want at most %d bytes, got %d", ErrSelector, maxSelectorBytes, len(selector))
	}
	matchers, err := selectors.ParseMetricSelector(selector)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSelector, err)
	}
	if len(matchers) > maxMatchers {
		return nil, fmt.Errorf("%w: want at most %d matchers, got %d", ErrSelector, maxMatchers, len(matchers))
	}
	if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches("") }) {
		return nil, fmt.Errorf("%w: want a name, or a matcher that an absent label does not match", ErrSelector)
	}
	q := &query{matchers: matchers}
	for _, m := range matchers {
		switch {
		case m.Name == model.MetricNameLabel && m.Type == labels.MatchEqual:
			q.name = m.Value
		case m.Name == model.MetricNameLabel:
		case m.Type == labels.MatchEqual && m.Value != "":
			q.parts = append(q.parts, metrics.AppendTextLabel(nil, m.Name, m.Value))
		}
		if slices.Contains(identityLabels, m.Name) {
			q.identity = append(q.identity, m)
		}
	}
	return q, nil
}

// wants reports whether lines of a family can match: lines of its name, or those of a
// histogram or a summary.
func (q *query) wants(family string) bool {
	return q.matchesName(family) || slices.ContainsFunc(lineSuffixes, func(suffix string) bool { return q.matchesName(family + suffix) })
}

// lineSuffixes follow the names of histograms and summaries in those of their lines.
var lineSuffixes = []string{"_bucket", "_count", "_sum"}

// family returns the name of a family that may have lines of the name.
func family(name string, isFamily func(string) bool) string {
	for _, suffix := range lineSuffixes {
		if base, cut := strings.CutSuffix(name, suffix); cut && !isFamily(name) && isFamily(base) {
			return base
		}
	}
	return name
}

func (q *query) matchesName(name string) bool {
	for _, m := range q.matchers {
		if m.Name == model.MetricNameLabel && !m.Matches(name) {
			return false
		}
	}
	return true
}

// mayMatch is false of a series in the text format that does not match.
func (q *query) mayMatch(series []byte) bool {
	for _, part := range q.parts {
		if !bytes.Contains(series, part) {
			return false
		}
	}
	return true
}

func (q *query) matches(series labels.Labels) bool { return q.countMatched(series) == len(q.matchers) }

// countMatched returns how many matchers match.
func (q *query) countMatched(series labels.Labels) (n int) {
	for _, m := range q.matchers {
		if m.Matches(series.Get(m.Name)) {
			n++
		}
	}
	return n
}

// similarity returns how much a series that matches n matchers is like what is asked for:
// each matcher of a label that names agents counts more than all others.
func (q *query) similarity(series labels.Labels, n int) int {
	for _, m := range q.identity {
		if m.Matches(series.Get(m.Name)) {
			n += len(q.matchers)
		}
	}
	return n
}

// matchesText is matches of a series in the text format.
func (q *query) matchesText(series string) bool {
	parsed, err := selectors.ParseMetric(series)
	return err == nil && q.matches(parsed)
}

// identityLabels are those that name an agent, from the widest to the narrowest.
var identityLabels = []string{"username", "workspace_name", "agent_name", "template_name"}

// identityValues are those of the labels of an agent, in the same order.
func identityValues(i *agent.Identity) [4]string {
	return [...]string{i.Username, i.WorkspaceName, i.AgentName, i.TemplateName}
}

// matchesAgent returns how many of identityLabels match, one after the other, until one
// does not.
func (q *query) matchesAgent(i *agent.Identity) (n int) {
	values := identityValues(i)
	for n < len(values) {
		for _, m := range q.identity {
			if m.Name == identityLabels[n] && !m.Matches(values[n]) {
				return n
			}
		}
		n++
	}
	return n
}

// identityUpTo returns the matchers of the first n of identityLabels as text.
func (q *query) identityUpTo(n int) string {
	var texts []string
	for _, label := range identityLabels[:n] {
		for _, m := range q.identity {
			if m.Name == label {
				texts = append(texts, m.String())
			}
		}
	}
	return strings.Join(texts, ",")
}
