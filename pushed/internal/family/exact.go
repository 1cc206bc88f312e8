package family

import "math"

// maxTerm is the largest magnitude of what is summed: all that a 64 bit counter
// can count. Beside a number of 1e300 all others would be nothing.
const maxTerm = 1 << 64

// isTerm reports whether v is a number, and small enough to be summed.
func isTerm(v float64) bool { return math.Abs(v) <= maxTerm }

// maxSum is the largest magnitude of what terms add up to: 2^32 of the largest.
const maxSum = maxTerm << 32

// isSum reports whether v is a number, and can be a sum of terms.
func isSum(v float64) bool { return math.Abs(v) <= maxSum }

// ExactSum is a sum of numbers without rounding errors. Its terms do not overlap, and
// are in increasing magnitude (Shewchuk 1997, "Adaptive precision floating-point
// arithmetic"). Whole numbers below 2^53 take one term.
//
// Plain sums depend on the order of adding. When instances are folded that
// order changes, and a sum that falls by its last digit is a reset of the
// counter to Prometheus. The value of an exact sum does not depend on it.
type ExactSum []float64

// plus returns e + x; e is not changed.
func (e ExactSum) plus(x float64) ExactSum {
	return append(make(ExactSum, 0, len(e)+1), e...).add(x)
}

func (e ExactSum) addAll(o ExactSum) ExactSum {
	for _, x := range o {
		e = e.add(x)
	}
	return e
}

// minus returns -e.
func (e ExactSum) minus() ExactSum {
	n := make(ExactSum, len(e))
	for i := range e {
		n[i] = -e[i]
	}
	return n
}

// add returns e + x in place of e. A sum beyond all numbers is infinite, and
// stays so; NaN likewise.
func (e ExactSum) add(x float64) ExactSum {
	if len(e) == 1 && (math.IsInf(e[0], 0) || math.IsNaN(e[0])) {
		e[0] += x
		return e
	}
	n := 0
	for _, y := range e {
		if math.Abs(x) < math.Abs(y) {
			x, y = y, x
		}
		high := x + y
		if math.IsInf(high, 0) || math.IsNaN(high) {
			return append(e[:0], high)
		}
		if low := y - (high - x); low != 0 {
			e[n] = low
			n++
		}
		x = high
	}
	return append(e[:n], x)
}

// value returns the number nearest to the sum; of two as near the even one.
func (e ExactSum) value() float64 {
	if len(e) == 0 {
		return 0
	}
	n := len(e) - 1
	high, low := e[n], 0.0
	for n > 0 {
		x, y := high, e[n-1]
		n--
		high = x + y
		if low = y - (high - x); low != 0 {
			break
		}
	}
	// What was rounded off lies half way: the terms below decide.
	if n > 0 && (low < 0 && e[n-1] < 0 || low > 0 && e[n-1] > 0) {
		double := 2 * low
		if sum := high + double; sum-high == double {
			return sum
		}
	}
	return high
}
