package aggregator

import (
	"slices"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// agentFamily is what an agent has of one family, which it holds. In a family that is not
// documented the agent counts for one type: that of the first sample of the
// family in its newest report that had one.
type agentFamily struct {
	family *family
	// series of the family that are held of the agent.
	series int32
	typ    agent.SampleType
	// contested is true once the report under way said another type than the
	// agent or the family has: the agent counts for a type, and stays with it.
	contested bool
	// kept is true if the report before contested the type: the agent counts for
	// its type even without a series.
	kept bool
}

// familyOf returns what the source has of a family; nil if it has nothing. It is
// valid until families are added or taken away.
func (src *source) familyOf(f *family) *agentFamily {
	for i := range src.families {
		if src.families[i].family == f {
			return &src.families[i]
		}
	}
	return nil
}

// agree has the agent count for the type that its sample gives the family. A
// reason says that it has too many families.
func (in *intake) agree(f *family, t agent.SampleType) metrics.Reason {
	src := in.src
	of := src.familyOf(f)
	switch {
	case of == nil:
		if len(src.families) >= in.agg.opts.MaxFamiliesPerAgent {
			return reasonAgentFamilies
		}
		in.agg.families.hold(f)
		in.addFamily(agentFamily{family: f, typ: t})
		src.untidy = true // unless a series follows
		f.moveAgent(noType, t)
	case f.documented == nil && of.typ != t && !of.contested:
		of.contested, src.untidy = true, true
		if !in.reported(f) {
			f.moveAgent(of.typ, t)
			of.typ = t
		}
	}
	return ""
}

// addFamily adds a family to those of the source. If that has no room for it, its
// families stand in the intake's buffer until returnFamilies.
func (in *intake) addFamily(of agentFamily) {
	src := in.src
	if !in.borrowed && len(src.families) == cap(src.families) {
		in.borrowed = true
		src.families = append(in.families[:0], src.families...)
	}
	src.families = append(src.families, of)
}

// returnFamilies gives the source a list of its own, no longer than need be.
func (in *intake) returnFamilies() {
	if !in.borrowed {
		return
	}
	in.borrowed = false
	buffer := in.src.families
	in.src.families = append([]agentFamily(nil), buffer...)
	clear(buffer)
	in.families = buffer[:0]
}

// contest notes that a sample is refused for its type, with which the agent
// counts all the same.
func (src *source) contest(f *family) metrics.Reason {
	src.familyOf(f).contested = true
	src.untidy = true
	return reasonWrongType
}

// reported tells whether the report had a sample of the family that was taken
// in.
func (in *intake) reported(f *family) bool {
	return slices.ContainsFunc(in.next, func(s series) bool { return s.desc.family == f })
}

// tidyFamilies forgets the families of which the agent has nothing any more. It
// follows a report, or the end of series.
func (src *source) tidyFamilies(reported bool) {
	if !src.untidy {
		return
	}
	src.untidy = false
	left := src.families[:0]
	for _, of := range src.families {
		if reported {
			of.kept, of.contested = of.contested, false
		}
		if of.series == 0 && !of.kept {
			of.family.moveAgent(of.typ, noType)
			of.family.agg.families.release(of.family)
			continue
		}
		src.untidy = src.untidy || of.kept
		left = append(left, of)
	}
	clear(src.families[len(left):])
	src.families = left
}
