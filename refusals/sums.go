package refusals

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Group is what refused items are summed by.
type Group uint8

// The groups.
const (
	ByTemplate Group = iota
	ByOwner
	ByVersion
	groups
)

// otherReasons stands for the reasons of a sum that has too many.
const otherReasons = "other"

// Sum is what was refused to all agents of a template, an owner or a version.
type Sum struct {
	// Name of the template, of the owner or of the version; empty: it is not known.
	Name string
	// Items that were refused since the first one.
	Items int64
	Last  time.Time
	// Reasons have the items by reason.
	Reasons map[string]int64
}

// sums are those of one group. The one that is added to the least recently makes room.
type sums struct {
	max    int
	byName *simplelru.LRU[string, *Sum]
	others int64 // items of sums that made room
}

func newSums(most int) sums { return sums{max: most, byName: newLRU[string, *Sum]()} }

// add adds items to the sum with the name.
func (s *sums) add(name, reason string, items int64, now time.Time) {
	sum, found := s.byName.Get(name)
	if !found {
		if s.byName.Len() >= s.max {
			_, oldest, _ := s.byName.RemoveOldest()
			s.others += oldest.Items
		}
		sum = &Sum{Name: strings.Clone(name), Reasons: make(map[string]int64, 1)}
		s.byName.Add(sum.Name, sum)
	}
	sum.Items += items
	sum.Last = now
	if _, known := sum.Reasons[reason]; !known {
		if reason = own(reason, maxNameBytes); len(sum.Reasons) >= maxSumReasons {
			reason = otherReasons
		}
	}
	sum.Reasons[reason] += items
}

// list returns copies, those with the most items first.
func (s *sums) list() (all []Sum, others int64) {
	for _, sum := range s.byName.Values() {
		all = append(all, Sum{Name: sum.Name, Items: sum.Items, Last: sum.Last, Reasons: maps.Clone(sum.Reasons)})
	}
	slices.SortFunc(all, func(a, b Sum) int {
		return cmp.Or(cmp.Compare(b.Items, a.Items), strings.Compare(a.Name, b.Name))
	})
	return all, s.others
}
