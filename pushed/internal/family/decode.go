package family

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/model"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

const (
	// maxHelpBytes of a family that the catalogue lacks; the rest is cut off.
	maxHelpBytes = 1024
	// maxExemplarBytes of an exemplar's labels: the 128 characters that
	// OpenMetrics allows, of up to 4 bytes.
	maxExemplarBytes = 512
)

// Snapshot is the families that an instance pushed at once, decoded and checked each
// by itself.
type Snapshot []*Decoded

// DecodeSnapshot decodes and checks serialized io.prometheus.client.MetricFamily
// messages, which were received at now. Each has an element of the result, in the same
// order. Families beyond MaxFamilies are refused, and only their names are read. As many
// as the limit are refused by name, the rest together with the first of them. families
// are neither changed nor kept. With passThrough what agents have is taken in.
func DecodeSnapshot(families [][]byte, limits Limits, now time.Time, passThrough bool) Snapshot {
	n := min(len(families), limits.MaxFamilies)
	out := make(Snapshot, len(families))
	for i, raw := range families[:n] {
		out[i] = decodeFamily(raw, limits, now, passThrough)
	}
	if n == len(families) {
		return out
	}
	beyond := refuse(reasonTooManyFamilies, "%d families, the first %d are stored (--max-pushed-families)", len(families), n)
	one := Refusals{beyond}
	for i, raw := range families[n:] {
		d := &Decoded{Name: nameOf(raw)}
		switch rest := len(families) - n - i; {
		case i < n:
			d.Refused = one
		case i == n && rest > 1:
			d.Refused = Refusals{{
				Reason: beyond.Reason, Message: fmt.Sprintf("%s; %d after this one are refused too", beyond.Message, rest-1), Count: rest,
			}}
		case i == n:
			d.Refused = one
		}
		out[n+i] = d
	}
	return out
}

// Decoded is one family of a snapshot, or why it is refused, or some of it.
type Decoded struct {
	// Name is set as far as it can be decoded.
	Name   string
	Family *Family // nil: refused
	// Refused are why the family, or series of it, or values of these are left out.
	Refused Refusals
}

func (d *Decoded) refuse(r *Refusal) *Decoded {
	d.Family, d.Refused = nil, Refusals{r}
	return d
}

// decodeFamily decodes and checks one io.prometheus.client.MetricFamily that
// was received at now. What of its series is not right is left out.
func decodeFamily(raw []byte, limits Limits, now time.Time, passThrough bool) *Decoded {
	d := &Decoded{Name: nameOf(raw)}
	var in dto.MetricFamily
	if err := proto.Unmarshal(raw, &in); err != nil {
		return d.refuse(refuse(reasonUndecodable, "not an io.prometheus.client.MetricFamily: %v", err))
	}
	d.Name = in.GetName()
	if reason := metrics.CheckPushedName(d.Name); reason != "" && (!passThrough || !metrics.PassedThrough(d.Name)) {
		return d.refuse(nameRefusal(d.Name, reason))
	}
	f := &Family{Name: d.Name}
	var r *Refusal
	if f.Type, r = decodeType(&in); r != nil {
		return d.refuse(r)
	}
	if known, ok := metrics.Documented(d.Name); ok {
		if f.Type != known.Type {
			return d.refuse(refuse(reasonTypeMismatch, "type %v, but documented as %v", f.Type, known.Type))
		}
		f.Help = known.Help
	} else {
		f.Help = agent.ShortenText(in.GetHelp(), maxHelpBytes)
	}
	f.Series = make([]Series, 0, len(in.Metric))
	own, r := withoutForwarded(&in)
	switch {
	case r != nil && passThrough:
		f.Passed = true
	case r != nil && len(own) == 0:
		return d.refuse(refuse(r.Reason, "%s", r.text()))
	case r != nil:
		d.Refused = append(d.Refused, r)
		in.Metric = own
	}
	for _, m := range in.Metric {
		labels, r := decodeLabels(m.GetLabel(), limits, f.Type)
		if r != nil {
			d.Refused.add(OfSeries, "", r)
			continue
		}
		s, r := decodeSeries(m, labels, f.Type, now, &d.Refused)
		if r != nil {
			d.Refused.add(OfSeries, labels, r)
			f.refuse(labels)
			continue
		}
		if f.Passed {
			s.Changed, s.Since = now.UnixNano(), 0
		}
		f.Series = append(f.Series, s)
	}
	slices.SortFunc(f.Series, compareSeries)
	f.Series = d.withoutDuplicates(f)
	d.Family = f
	return d
}

// withoutDuplicates returns the series whose labels are theirs alone: of several
// nobody knows which is right. Those that are refused already count too.
func (d *Decoded) withoutDuplicates(f *Family) []Series {
	out := f.Series[:0]
	for i := 0; i < len(f.Series); {
		next := i + 1
		for next < len(f.Series) && f.Series[next].Labels == f.Series[i].Labels {
			next++
		}
		labels := f.Series[i].Labels
		switch {
		case next == i+1 && !f.refusedLabels[labels]:
			out = append(out, f.Series[i])
		default:
			for range next - i {
				d.Refused.add(OfSeries, labels, refuse(reasonDuplicateSeries, "another series has the same labels"))
			}
			f.refuse(labels)
		}
		i = next
	}
	return out
}

// nameOf returns the name of a serialized family that may be malformed.
func nameOf(raw []byte) (name string) {
	for len(raw) > 0 {
		number, kind, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return name
		}
		raw = raw[n:]
		if number == 1 && kind == protowire.BytesType {
			value, n := protowire.ConsumeBytes(raw)
			if n < 0 {
				return name
			}
			name, raw = string(value), raw[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(number, kind, raw); n < 0 {
			return name
		}
		raw = raw[n:]
	}
	return name
}

func decodeType(in *dto.MetricFamily) (metrics.Type, *Refusal) {
	if in.Type != nil { // absent, or not known to the library
		switch in.GetType() {
		case dto.MetricType_COUNTER:
			return metrics.Counter, nil
		case dto.MetricType_GAUGE:
			return metrics.Gauge, nil
		case dto.MetricType_SUMMARY:
			return metrics.Summary, nil
		case dto.MetricType_HISTOGRAM:
			return metrics.Histogram, nil
		case dto.MetricType_UNTYPED:
			return metrics.Untyped, nil
		}
	}
	return 0, refuse(reasonUnknownType, "its type is none of counter, gauge, summary, histogram and untyped")
}

// decodeSeries decodes and checks the values of one series. It is refused, or
// some of them are, which goes to values.
func decodeSeries(m *dto.Metric, labels string, t metrics.Type, now time.Time, values *Refusals) (s Series, r *Refusal) {
	s.Labels = labels
	var created *timestamppb.Timestamp
	var missing bool
	switch t {
	case metrics.Counter:
		missing = m.Counter == nil
		created = m.GetCounter().GetCreatedTimestamp()
		s.Value = canonical(m.GetCounter().GetValue())
		if !isTerm(s.Value) || s.Value < 0 {
			return s, refuse(reasonInvalidCounter, "counter of %v: want a number from 0 to 2^64", s.Value)
		}
		if e := m.GetCounter().GetExemplar(); e != nil {
			s.Exemplar = decodeExemplar(e, s.Labels, values)
		}
	case metrics.Gauge:
		missing = m.Gauge == nil
		s.Value, s.Changed = canonical(m.GetGauge().GetValue()), now.UnixNano()
	case metrics.Summary:
		missing = m.Summary == nil
		created = m.GetSummary().GetCreatedTimestamp()
		s.Hist, s.Quantiles, r = decodeSummary(m.GetSummary())
	case metrics.Histogram:
		missing = m.Histogram == nil
		created = m.GetHistogram().GetCreatedTimestamp()
		s.Hist, r = decodeHistogram(m.GetHistogram(), s.Labels, values)
	default:
		missing = m.Untyped == nil
		s.Value, s.Changed = canonical(m.GetUntyped().GetValue()), now.UnixNano()
	}
	if missing {
		return s, refuse(reasonMissingValue, "it has no %v", t)
	}
	if r != nil {
		return s, r
	}
	if created != nil {
		if s.Created, r = decodeTime(created); r != nil {
			values.add(OfValues, labels, r)
		}
		s.Since = s.Created
	}
	if s.Hist != nil {
		if sum := s.Hist.Sum.value(); !isTerm(sum) {
			values.add(OfValues, s.Labels, refuse(reasonInvalidSum, "sum of %v: want a number from -2^64 to 2^64", sum))
			s.Hist.Sum, s.noSum = nil, true
		}
	}
	return s, nil
}

// canonical makes every NaN one quiet NaN, so that Prometheus's marker of stale
// series cannot be forged, and -0 0.
func canonical(v float64) float64 {
	if math.IsNaN(v) {
		return math.NaN()
	}
	return v + 0
}

// decodeLabels returns the labels of a series. Those without a value are left
// out: to Prometheus they are not there.
func decodeLabels(in []*dto.LabelPair, limits Limits, t metrics.Type) (string, *Refusal) {
	if len(in) > metrics.MaxLabels {
		return "", refuse(metrics.ReasonTooManyLabels, "%d labels, at most %d", len(in), metrics.MaxLabels)
	}
	for _, l := range in {
		name, value := l.GetName(), l.GetValue()
		switch {
		case len(name) > metrics.MaxLabelNameBytes:
			return "", refuse(metrics.ReasonLabelNameTooLong, "label name of %d bytes, at most %d", len(name), metrics.MaxLabelNameBytes)
		case !model.LegacyValidation.IsValidLabelName(name):
			return "", refuse(metrics.ReasonInvalidLabelName, "label name %q", name)
		case strings.HasPrefix(name, "__"),
			(t == metrics.Histogram || t == metrics.Summary) && (name == "le" || name == "quantile"):
			return "", refuse(metrics.ReasonReservedLabel, "label %s of a %v", name, t)
		case len(value) > limits.MaxLabelValueBytes:
			return "", refuse(metrics.ReasonLabelValueTooLong, "value of label %s of %d bytes, at most %d (--max-pushed-label-value-bytes)", name, len(value), limits.MaxLabelValueBytes)
		}
	}
	labels, r := joinLabels(in, limits.MaxLabelsBytes)
	if r != nil && r.Reason == metrics.ReasonLabelsTooLong {
		r.Message += " (--max-pushed-labels-bytes)"
	}
	return labels, r
}

// joinLabels sorts and joins labels whose names are valid.
func joinLabels(in []*dto.LabelPair, limit int) (string, *Refusal) {
	slices.SortFunc(in, func(a, b *dto.LabelPair) int { return strings.Compare(a.GetName(), b.GetName()) })
	size := 0
	for i, l := range in {
		switch {
		case i > 0 && l.GetName() == in[i-1].GetName():
			return "", refuse(metrics.ReasonDuplicateLabel, "label %s twice", l.GetName())
		case !utf8.ValidString(l.GetValue()):
			return "", refuse(metrics.ReasonInvalidLabelValue, "value of label %s is not UTF-8", l.GetName())
		}
		size += len(l.GetName()) + len(l.GetValue()) + 2*len(labelEnd)
	}
	if size > limit+2*len(labelEnd)*len(in) {
		return "", refuse(metrics.ReasonLabelsTooLong, "labels of more than %d bytes", limit)
	}
	var b strings.Builder
	b.Grow(size)
	for _, l := range in {
		if l.GetValue() != "" {
			b.WriteString(l.GetName())
			b.WriteString(labelEnd)
			b.WriteString(l.GetValue())
			b.WriteString(labelEnd)
		}
	}
	return b.String(), nil
}

// decodeExemplar returns nil if the exemplar of the series is refused, which goes
// to values.
func decodeExemplar(in *dto.Exemplar, labels string, values *Refusals) *Exemplar {
	e, r := checkExemplar(in)
	if r != nil {
		values.add(OfValues, labels, r)
		return nil
	}
	return &e
}

func checkExemplar(in *dto.Exemplar) (Exemplar, *Refusal) {
	e := Exemplar{Value: canonical(in.GetValue())}
	for _, l := range in.GetLabel() {
		if !model.LegacyValidation.IsValidLabelName(l.GetName()) {
			return e, refuse(reasonInvalidExemplar, "label name %q of an exemplar", agent.ShortenText(l.GetName(), metrics.MaxLabelNameBytes))
		}
	}
	var r *Refusal
	if e.Labels, r = joinLabels(in.GetLabel(), maxExemplarBytes); r != nil {
		return e, refuse(reasonInvalidExemplar, "exemplar: %s", r.Message)
	}
	if in.Timestamp != nil {
		if e.Time, r = decodeTime(in.Timestamp); r != nil {
			return e, refuse(reasonInvalidExemplar, "exemplar: %s", r.Message)
		}
	}
	return e, nil
}

// decodeTime returns nanoseconds since 1970.
func decodeTime(in *timestamppb.Timestamp) (int64, *Refusal) {
	const most = math.MaxInt64/int64(time.Second) - 1 // in the year 2262
	if err := in.CheckValid(); err != nil || in.Seconds < 0 || in.Seconds > most {
		return 0, refuse(reasonInvalidTime, "time of %d s is not within 1970 and 2262", in.Seconds)
	}
	return in.AsTime().UnixNano(), nil
}

// labelsText returns labels for people, the first of them.
func labelsText(labels string) string {
	const most = 200
	var b []byte
	for name, value := range eachLabel(labels) {
		if len(b) > 0 {
			b = append(b, ',')
		}
		if b = metrics.AppendTextLabel(b, name, value); len(b) > most {
			return agent.CutText(string(b), most) + "..."
		}
	}
	return string(b)
}

// eachLabel yields names and values of the labels of a series.
func eachLabel(labels string) func(yield func(name, value string) bool) {
	return func(yield func(name, value string) bool) {
		for labels != "" {
			var name, value string
			name, labels, _ = strings.Cut(labels, labelEnd)
			value, labels, _ = strings.Cut(labels, labelEnd)
			if !yield(name, value) {
				return
			}
		}
	}
}
