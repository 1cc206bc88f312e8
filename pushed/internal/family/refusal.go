package family

import (
	"fmt"
	"slices"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// Reasons for which a family or a series is refused, beside those of package
// metrics.
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
	reasonTooManyFamilies  metrics.Reason = "too_many_families"
	reasonTooManySeries    metrics.Reason = "too_many_series"
	reasonTooManyBytes     metrics.Reason = "too_many_bytes"
)

// Reasons for which a value of a series is left out. The series is served.
const (
	reasonInvalidExemplar metrics.Reason = "invalid_exemplar"
	reasonInvalidSum      metrics.Reason = "invalid_sum"
	reasonInvalidTime     metrics.Reason = "invalid_time"
	// reasonInvalidTerm is counted, but not sent: such a gauge is served where it is
	// alone.
	reasonInvalidTerm metrics.Reason = "invalid_term"
)

// MaxMessages are kept of the refusals of one snapshot; of the others the names
// and reasons.
const MaxMessages = 64

// Scope is what a refusal removes.
type Scope uint8

const (
	// OfFamily removes a family.
	OfFamily Scope = iota
	// OfSeries removes series. The others of the family are served.
	OfSeries
	// OfValues removes values. Their series are served.
	OfValues
)

// Reasons are those of refusals, by what they remove.
var Reasons = map[Scope][]metrics.Reason{
	OfFamily: {
		metrics.ReasonNameTooLong, metrics.ReasonInvalidName, metrics.ReasonOwnedByService, metrics.ReasonForwardedSeries,
		reasonUndecodable, reasonUnknownType, reasonTypeMismatch, reasonNameCollision, reasonDuplicateFamily, reasonTooManyFamilies,
	},
	OfSeries: {
		metrics.ReasonForwardedSeries, metrics.ReasonTooManyLabels, metrics.ReasonLabelNameTooLong, metrics.ReasonInvalidLabelName,
		metrics.ReasonReservedLabel, metrics.ReasonLabelValueTooLong, metrics.ReasonDuplicateLabel, metrics.ReasonInvalidLabelValue,
		metrics.ReasonLabelsTooLong, reasonMissingValue, reasonInvalidCounter, reasonInvalidSummary, reasonInvalidHistogram,
		reasonInvalidNative, reasonDuplicateSeries, reasonTooManySeries, reasonTooManyBytes,
	},
	OfValues: {reasonInvalidExemplar, reasonInvalidSum, reasonInvalidTime, reasonInvalidTerm},
}

// Refusal is why a family, some of its series or some of their values are refused.
type Refusal struct {
	Reason metrics.Reason
	Scope  Scope
	// Message describes the first one, for people. Count is their number.
	Message string
	Count   int
}

// refuse refuses a family, or whatever the caller is about to add to Refusals.
func refuse(reason metrics.Reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Message: fmt.Sprintf(format, args...), Count: 1}
}

// text is the refusal for people.
func (r *Refusal) text() string {
	switch {
	case r.Scope == OfFamily:
		return r.Message
	case r.Scope == OfValues:
		return fmt.Sprintf("left out %d times, the first: %s", r.Count, r.Message)
	case r.Count == 1:
		return r.Message
	}
	return fmt.Sprintf("%d series, the first: %s", r.Count, r.Message)
}

// Refusals are those of one family, one for each reason.
type Refusals []*Refusal

// add counts a series, or a value of one, as refused. labels may not be known.
func (l *Refusals) add(of Scope, labels string, r *Refusal) {
	for _, before := range *l {
		if before.Reason == r.Reason && before.Scope == of {
			before.Count++
			return
		}
	}
	message := r.Message
	if labels != "" {
		message = fmt.Sprintf("{%s}: %s", labelsText(labels), message)
	}
	*l = append(*l, &Refusal{r.Reason, of, message, 1})
}

// NeedRoom reports whether series are refused that more room would admit.
func (l Refusals) NeedRoom() bool {
	return slices.ContainsFunc(l, func(r *Refusal) bool {
		return r.Reason == reasonTooManySeries || r.Reason == reasonTooManyBytes
	})
}

// invalidTerms returns the refusal of the gauges of a family that count in no sum,
// maximum or minimum; nil: there are none.
func (p Policy) invalidTerms(f *Family) *Refusal {
	if f.Passed || cumulative(f.Type) || !combines(p.of(f.Name, f.Type)) {
		return nil
	}
	n := 0
	for i := range f.Series {
		if !isTerm(f.Series[i].Value) {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return &Refusal{Reason: reasonInvalidTerm, Scope: OfValues, Count: n}
}

// Messages returns the refusals that are sent to a coderd. refused are those of each
// family of the snapshot, as Admit returned them. The first MaxMessages have texts.
func (s Snapshot) Messages(refused []Refusals) (out []agent.PushRefusal) {
	for i, all := range refused {
		for _, r := range all {
			if r.Reason == reasonInvalidTerm {
				continue
			}
			t := agent.PushRefusal{
				Name:   agent.ShortenText(s[i].Name, metrics.MaxNameBytes),
				Reason: string(r.Reason),
			}
			if r.Scope != OfFamily {
				t.Series = r.Count
			}
			if len(out) < MaxMessages {
				t.Message = r.text()
			}
			out = append(out, t)
		}
	}
	return out
}

// nameRefusal is why a family of that name is refused.
func nameRefusal(name string, reason metrics.Reason) *Refusal {
	switch reason {
	case metrics.ReasonNameTooLong:
		return refuse(reason, "name of %d bytes, at most %d", len(name), metrics.MaxNameBytes)
	case metrics.ReasonInvalidName:
		return refuse(reason, "name %q: want [a-zA-Z_:][a-zA-Z0-9_:]*", agent.ShortenText(name, metrics.MaxNameBytes))
	}
	return refuse(reason, "%s is a family of this service, of its agents or of Prometheus, or has lines of such names: coderd may not push it", name)
}
