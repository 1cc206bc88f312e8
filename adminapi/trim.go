package adminapi

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// maxTextBytes bounds each text of a status.
	maxTextBytes = 300
	// maxWarnings bounds the warnings.
	maxWarnings = 30
)

// trim cuts the texts of a status, and leaves out rows until it has at most mostBytes. It
// returns how many. The smallest rows of cardinality go first, then the smallest
// of what was refused, then the last warnings and places. The rest has at most about 14 KB:
// 90 limits, 10 components with their reasons, some certificates.
func trim(r *agentstatsv1.ReplicaStatus, mostBytes int) (leftOut int) {
	if n := len(r.GetWarnings()); n > maxWarnings {
		leftOut, r.Warnings = n-maxWarnings, r.GetWarnings()[:maxWarnings]
	}
	cutTexts(r)
	for proto.Size(r) > mostBytes && dropRow(r) {
		leftOut++
	}
	return leftOut
}

// cutTexts cuts the texts, and makes them UTF-8, which messages have to be.
func cutTexts(r *agentstatsv1.ReplicaStatus) {
	cut := func(texts ...*string) {
		for _, text := range texts {
			*text = agent.ShortenText(*text, maxTextBytes)
		}
	}
	cut(&r.Name, &r.Url, &r.Version, &r.Revision)
	warnings := make([]string, len(r.GetWarnings())) // those that were given are the caller's
	for i, text := range r.GetWarnings() {
		warnings[i] = agent.ShortenText(text, maxTextBytes)
	}
	r.Warnings = warnings
	for _, c := range r.GetComponents() {
		cut(&c.Name, &c.Reason)
	}
	for _, p := range r.GetPlaces() {
		cut(&p.Name, &p.Value)
	}
	for _, n := range r.GetRefused() {
		cut(&n.Name)
	}
	for _, group := range r.GetCardinality() {
		for _, row := range group.GetRows() {
			cut(&row.Name)
		}
	}
}

// dropRow leaves out the row that matters least; false: there is none.
func dropRow(r *agentstatsv1.ReplicaStatus) bool {
	var smallest *agentstatsv1.CardinalityGroup
	last := func(g *agentstatsv1.CardinalityGroup) float64 { return g.GetRows()[len(g.GetRows())-1].GetSeries() }
	for _, group := range r.GetCardinality() {
		if len(group.GetRows()) > 0 && (smallest == nil || last(group) < last(smallest)) {
			smallest = group
		}
	}
	switch {
	case smallest != nil: // the rows of each are in order
		smallest.Rows = slices.Delete(smallest.Rows, len(smallest.Rows)-1, len(smallest.Rows))
	case len(r.GetRefused()) > 0:
		r.Refused = r.GetRefused()[:len(r.GetRefused())-1]
	case len(r.GetWarnings()) > 0:
		r.Warnings = r.GetWarnings()[:len(r.GetWarnings())-1]
	case len(r.GetPlaces()) > 0:
		r.Places = r.GetPlaces()[:len(r.GetPlaces())-1]
	default:
		return false
	}
	return true
}
