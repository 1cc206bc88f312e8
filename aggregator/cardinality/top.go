package cardinality

import "slices"

// Top has the first values, in an order, of all that are added. It takes memory for twice as
// many.
type Top[V any] struct {
	limit   int
	compare func(a, b V) int
	kept    []V
	// full is true once kept[limit-1] is a value before which another one must come.
	full bool
}

// NewTop returns a Top of limit values, at least 1. compare is less than 0 if a comes before b.
func NewTop[V any](limit int, compare func(a, b V) int) *Top[V] {
	return &Top[V]{limit: limit, compare: compare}
}

// Add adds a value.
func (t *Top[V]) Add(v V) {
	if t.full && t.compare(v, t.kept[t.limit-1]) >= 0 {
		return
	}
	if t.kept = append(t.kept, v); len(t.kept) == 2*t.limit {
		t.cut()
	}
}

func (t *Top[V]) cut() {
	slices.SortFunc(t.kept, t.compare)
	if len(t.kept) >= t.limit {
		t.kept, t.full = t.kept[:t.limit], true
	}
}

// Sorted returns the values in their order. They are valid until another one is added.
func (t *Top[V]) Sorted() []V {
	t.cut()
	return t.kept
}
