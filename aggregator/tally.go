package aggregator

import (
	"math"
	"sync/atomic"
)

// maxTerm is the largest value that a group includes. A float64 beyond it does not
// count by ones: one such term would hide all others.
const maxTerm = 1 << 53

// omission is why a value is left out of its group.
type omission uint8

const (
	included omission = iota
	notFinite
	tooLarge

	omissions
)

// omissionReasons are the omissions as the counter labels them.
var omissionReasons = [omissions]string{notFinite: "not_finite", tooLarge: "too_large"}

// omit returns the reason for which a group leaves v out, if it does.
func omit(v float64) omission {
	switch {
	case math.Abs(v) <= maxTerm:
		return included
	case math.IsNaN(v) || math.IsInf(v, 0):
		return notFinite
	}
	return tooLarge
}

// tally is a sum of many terms from 0 to maxTerm. Large terms do not hide small
// ones. It counts modulo 2^53, as a counter of that many bits would. A reader takes
// the new round for a reset.
type tally struct {
	// whole and part are the sum, in ones and in units of 2^-64.
	whole, part atomic.Uint64
}

// tallyRange is what a tally counts to.
const tallyRange = 1 << 53

// add does not block.
func (t *tally) add(v float64) {
	whole := uint64(v)
	if part := uint64((v - float64(whole)) * (1 << 64)); part > 0 && t.part.Add(part) < part {
		whole++
	}
	if whole > 0 {
		t.whole.Add(whole)
	}
}

// value returns the sum, and its round. While terms are added it may be less than
// one before.
func (t *tally) value() (v float64, round uint64) {
	whole, part := t.whole.Load(), t.part.Load()
	return float64(whole%tallyRange) + float64(part)/(1<<64), whole / tallyRange
}

// sum is a sum of few terms in any order. Large terms do not hide small ones. What
// one float64 cannot represent is kept in another.
type sum struct{ high, low float64 }

func (s *sum) add(v float64) {
	high := s.high + v
	// What was lost by rounding, exactly.
	of := high - s.high
	s.low += (s.high - (high - of)) + (v - of)
	s.high = high
}

func (s *sum) value() float64 { return s.high + s.low }
