package metrics

import (
	"fmt"
	"slices"
	"strings"
)

// Merge is how the values of several coderd instances become one.
type Merge string

// The ways of merging.
const (
	// MergeNone is for families that coderd does not own.
	MergeNone Merge = ""
	// MergeSum adds: of counters and histograms what each instance ever counted,
	// of gauges the current values.
	MergeSum Merge = "sum"
	// MergeMax takes the largest value of each series.
	MergeMax Merge = "max"
	// MergeMin takes the least value of each series.
	MergeMin Merge = "min"
	// MergeSticky stays with one instance's values until they are gone, because
	// all instances have the same from one database.
	MergeSticky Merge = "sticky"
	// MergeStickySeries stays, for each series, with one instance until that has
	// the series no more. It is the guess for gauges that nobody knows: what
	// only one instance has is served too.
	MergeStickySeries Merge = "sticky by series"
	// MergeNewest takes each series from the instance that changed it last.
	MergeNewest Merge = "newest"
)

// NewerFamily is a family that Coder documents since the contract. Its help is
// what coderd pushes, and nothing is refused for being unlike it.
type NewerFamily struct {
	Name string
	Type Type
	// Owner is who may give the family values.
	Owner Owner
	// Merge is how values of several coderd instances become one.
	Merge Merge
	// Labels are the names of the family's labels, sorted.
	Labels []string
}

// Newer returns the newer family called name; false if there is none. What it
// points to is shared and must not be changed.
func Newer(name string) (*NewerFamily, bool) {
	i, ok := slices.BinarySearchFunc(newerFamilies, name, func(f NewerFamily, name string) int {
		return strings.Compare(f.Name, name)
	})
	if !ok {
		return nil, false
	}
	return &newerFamilies[i], true
}

// ownerOf returns who may give a family values, and its type; "" if the family
// is not known.
func ownerOf(name string) (Owner, Type) {
	if f, ok := Documented(name); ok {
		return f.Owner, f.Type
	}
	if f, ok := Newer(name); ok {
		return f.Owner, f.Type
	}
	return "", 0
}

// MergeOf returns how the instances' values of a family called name, which they
// push as a t, become one. known is false if that is a guess by the type.
func MergeOf(name string, t Type) (how Merge, known bool) {
	if f, ok := Documented(name); ok && f.Type == t && f.Merge != MergeNone {
		return f.Merge, true
	}
	if f, ok := Newer(name); ok && f.Type == t && f.Merge != MergeNone {
		return f.Merge, true
	}
	switch t {
	case Counter, Histogram, Summary:
		return MergeSum, false
	default:
		return MergeStickySeries, false
	}
}

// ParseMerges parses settings like name=sum, of any of sum, max, min,
// sticky and newest, by the families' names.
func ParseMerges(settings []string) (map[string]Merge, error) {
	merges := make(map[string]Merge, len(settings))
	for _, s := range settings {
		name, how, found := strings.Cut(s, "=")
		merge := Merge(how)
		switch {
		case !found:
			return nil, fmt.Errorf("%q: want name=sum, max, min, sticky or newest", s)
		case CheckPushedName(name) != "":
			return nil, fmt.Errorf("%q: no family that coderd may push has the name %q (%s)", s, name, CheckPushedName(name))
		case !slices.Contains([]Merge{MergeSum, MergeMax, MergeMin, MergeSticky, MergeNewest}, merge):
			return nil, fmt.Errorf("%q: want sum, max, min, sticky or newest, got %q", s, how)
		}
		if before, ok := merges[name]; ok && before != merge {
			return nil, fmt.Errorf("%s is both %s and %s", name, before, merge)
		}
		merges[name] = merge
	}
	return merges, nil
}
