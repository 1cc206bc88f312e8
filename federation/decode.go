package federation

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/model"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/metrics"
)

// Reasons for which a family is refused, beside those of package metrics.
const (
	reasonUndecodable      metrics.Reason = "undecodable"
	reasonUnknownType      metrics.Reason = "unknown_type"
	reasonTypeMismatch     metrics.Reason = "type_mismatch"
	reasonNameCollision    metrics.Reason = "name_collision"
	reasonDuplicateFamily  metrics.Reason = "duplicate_family"
	reasonDuplicateSeries  metrics.Reason = "duplicate_series"
	reasonMissingValue     metrics.Reason = "missing_value"
	reasonInvalidCounter   metrics.Reason = "invalid_counter"
	reasonInvalidSummary   metrics.Reason = "invalid_summary"
	reasonInvalidHistogram metrics.Reason = "invalid_histogram"
	reasonInvalidNative    metrics.Reason = "invalid_native_histogram"
	reasonInvalidExemplar  metrics.Reason = "invalid_exemplar"
	reasonInvalidTime      metrics.Reason = "invalid_time"
	reasonTooManyFamilies  metrics.Reason = "too_many_families"
	reasonTooManySeries    metrics.Reason = "too_many_series"
)

const (
	// maxHelpBytes of a family that the catalogue lacks; the rest is cut off.
	maxHelpBytes = 1024
	// maxExemplarBytes of an exemplar's labels: the 128 characters that
	// OpenMetrics allows, of up to 4 bytes.
	maxExemplarBytes = 512
)

// refusal is why a family is not taken in.
type refusal struct {
	reason  metrics.Reason
	message string
}

func refuse(reason metrics.Reason, format string, args ...any) *refusal {
	return &refusal{reason, fmt.Sprintf(format, args...)}
}

// decodeFamily decodes and checks one io.prometheus.client.MetricFamily that
// was received at now. name is set as far as it can be told.
func decodeFamily(raw []byte, now time.Time) (name string, _ *family, _ *refusal) {
	var in dto.MetricFamily
	if err := proto.Unmarshal(raw, &in); err != nil {
		return "", nil, refuse(reasonUndecodable, "not an io.prometheus.client.MetricFamily: %v", err)
	}
	name = in.GetName()
	if r := metrics.CheckPushedName(name); r != "" {
		return name, nil, refuse(r, "name of %d bytes, at most %d: coderd may not push it", len(name), metrics.MaxNameBytes)
	}
	f := &family{Name: name}
	var r *refusal
	if f.Type, r = decodeType(&in); r != nil {
		return name, nil, r
	}
	if d, ok := metrics.Documented(name); ok {
		if f.Type != d.Type {
			return name, nil, refuse(reasonTypeMismatch, "type %v, but documented as %v", f.Type, d.Type)
		}
		f.Help = d.Help
	} else {
		f.Help = cut(strings.ToValidUTF8(in.GetHelp(), "\uFFFD"), maxHelpBytes)
	}
	f.Series = make([]series, len(in.Metric))
	for i, m := range in.Metric {
		if f.Series[i], r = decodeSeries(m, f.Type, now); r != nil {
			return name, nil, r
		}
	}
	slices.SortFunc(f.Series, compareSeries)
	for i := 1; i < len(f.Series); i++ {
		if f.Series[i].Labels == f.Series[i-1].Labels {
			return name, nil, refuse(reasonDuplicateSeries, "two series with the labels {%s}", labelsText(f.Series[i].Labels))
		}
	}
	return name, f, nil
}

func decodeType(in *dto.MetricFamily) (metrics.Type, *refusal) {
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

func decodeSeries(m *dto.Metric, t metrics.Type, now time.Time) (s series, r *refusal) {
	if s.Labels, r = decodeLabels(m.GetLabel(), t); r != nil {
		return s, r
	}
	var created *timestamppb.Timestamp
	var missing bool
	switch t {
	case metrics.Counter:
		missing = m.Counter == nil
		created = m.GetCounter().GetCreatedTimestamp()
		s.Value = canonical(m.GetCounter().GetValue())
		if math.IsNaN(s.Value) || math.IsInf(s.Value, 0) || s.Value < 0 {
			return s, refuse(reasonInvalidCounter, "{%s} is %v: a counter is finite and not negative", labelsText(s.Labels), s.Value)
		}
		if e := m.GetCounter().GetExemplar(); e != nil {
			s.Exemplar = new(exemplar)
			*s.Exemplar, r = decodeExemplar(e)
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
		s.Hist, r = decodeHistogram(m.GetHistogram())
	default:
		missing = m.Untyped == nil
		s.Value, s.Changed = canonical(m.GetUntyped().GetValue()), now.UnixNano()
	}
	if missing {
		return s, refuse(reasonMissingValue, "{%s} has no %v", labelsText(s.Labels), t)
	}
	if r == nil && created != nil {
		s.Created, r = decodeTime(created)
	}
	if r != nil {
		r.message = fmt.Sprintf("{%s}: %s", labelsText(s.Labels), r.message)
	}
	return s, r
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
func decodeLabels(in []*dto.LabelPair, t metrics.Type) (string, *refusal) {
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
		case len(value) > metrics.MaxLabelValueBytes:
			return "", refuse(metrics.ReasonLabelValueTooLong, "value of label %s of %d bytes, at most %d", name, len(value), metrics.MaxLabelValueBytes)
		}
	}
	return joinLabels(in, metrics.MaxLabelsBytes)
}

// joinLabels sorts and joins labels whose names are valid.
func joinLabels(in []*dto.LabelPair, limit int) (string, *refusal) {
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

func decodeExemplar(in *dto.Exemplar) (exemplar, *refusal) {
	e := exemplar{Value: canonical(in.GetValue())}
	for _, l := range in.GetLabel() {
		if !model.LegacyValidation.IsValidLabelName(l.GetName()) {
			return e, refuse(reasonInvalidExemplar, "label name %q of an exemplar", cut(l.GetName(), metrics.MaxLabelNameBytes))
		}
	}
	var r *refusal
	if e.Labels, r = joinLabels(in.GetLabel(), maxExemplarBytes); r != nil {
		return e, refuse(reasonInvalidExemplar, "exemplar: %s", r.message)
	}
	if in.Timestamp != nil {
		e.Time, r = decodeTime(in.Timestamp)
	}
	return e, r
}

// decodeTime returns nanoseconds since 1970.
func decodeTime(in *timestamppb.Timestamp) (int64, *refusal) {
	const most = math.MaxInt64/int64(time.Second) - 1 // in the year 2262
	if err := in.CheckValid(); err != nil || in.Seconds < 0 || in.Seconds > most {
		return 0, refuse(reasonInvalidTime, "time of %d s is not within 1970 and 2262", in.Seconds)
	}
	return in.AsTime().UnixNano(), nil
}

// cut returns the first bytes of s, at most n, that are whole characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
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
			return cut(string(b), most) + "..."
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
