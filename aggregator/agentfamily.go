package aggregator

import (
	"slices"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// agentFamily is what an agent has of one family, which it retains. In a family
// that is not documented the agent counts for one type. It is that of the family's
// first sample in the agent's newest report with one.
type agentFamily struct {
	family *family
	// series is the number of the agent's series of the family.
	series int32
	typ    agent.SampleType
	// contested is true once a sample of the report in progress had another type
	// than the agent or the family has. The agent counts for a type, and keeps it.
	contested bool
	// kept is true if the report before contested the type. The agent then counts
	// for its type even without a series.
	kept bool
}

// familyOf returns what the agent has of a family; nil if it has nothing. The
// result is valid until families are added or removed.
func (as *agentSeries) familyOf(f *family) *agentFamily {
	for i := range as.families {
		if as.families[i].family == f {
			return &as.families[i]
		}
	}
	return nil
}

// declareType counts the agent for the type that its sample gives the family. It
// returns a reason if the agent has too many families.
func (in *ingester) declareType(f *family, t agent.SampleType) metrics.Reason {
	as := in.agent
	of := as.familyOf(f)
	switch {
	case of == nil:
		if len(as.families) >= in.agg.opts.Load().MaxFamiliesPerAgent {
			return reasonAgentFamilies
		}
		in.agg.families.retain(f)
		in.addFamily(agentFamily{family: f, typ: t})
		as.familiesUnused = true // unless a series follows
		f.countType(noType, t)
	case f.documented == nil && of.typ != t && !of.contested:
		of.contested, as.familiesUnused = true, true
		if !in.hasReported(f) {
			f.countType(of.typ, t)
			of.typ = t
		}
	}
	return ""
}

// addFamily adds a family to those of the agent. If their list is full, it moves to
// the ingester's buffer until returnFamilies.
func (in *ingester) addFamily(of agentFamily) {
	as := in.agent
	if !in.borrowed && len(as.families) == cap(as.families) {
		in.borrowed = true
		as.families = append(in.families[:0], as.families...)
	}
	as.families = append(as.families, of)
}

// returnFamilies copies a list in the ingester's buffer to one of the exact length.
func (in *ingester) returnFamilies() {
	if !in.borrowed {
		return
	}
	in.borrowed = false
	buffer := in.agent.families
	in.agent.families = append([]agentFamily(nil), buffer...)
	clear(buffer)
	in.families = buffer[:0]
}

// contestType notes that a sample is refused for its type. The agent still counts
// for that type.
func (as *agentSeries) contestType(f *family) metrics.Reason {
	as.familyOf(f).contested = true
	as.familiesUnused = true
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.reserved.made {
		return ReasonPushedFamily
	}
	return ReasonWrongType
}

// hasReported reports whether the report had a sample of the family that was
// stored.
func (in *ingester) hasReported(f *family) bool {
	return slices.ContainsFunc(in.next, func(s series) bool { return s.desc.family == f })
}

// removeUnusedFamilies removes the families of which the agent has nothing any
// more. It is called after a report, and after series are removed.
func (as *agentSeries) removeUnusedFamilies(reported bool) {
	if !as.familiesUnused {
		return
	}
	as.familiesUnused = false
	left := as.families[:0]
	for _, of := range as.families {
		if reported {
			of.kept, of.contested = of.contested, false
		}
		if of.series == 0 && !of.kept {
			of.family.countType(of.typ, noType)
			of.family.agg.families.release(of.family)
			continue
		}
		as.familiesUnused = as.familiesUnused || of.kept
		left = append(left, of)
	}
	clear(as.families[len(left):])
	as.families = left
}
