package figure

import (
	"math"
	"slices"
)

// Summary is what is shown of many values.
type Summary struct {
	N                int
	Median, Min, Max float64
}

// Summarize returns the summary of values; N is 0 if there are none.
func Summarize(values []float64) Summary {
	if len(values) == 0 {
		return Summary{Median: math.NaN(), Min: math.NaN(), Max: math.NaN()}
	}
	return Summary{
		N:      len(values),
		Median: Percentile(values, 50),
		Min:    slices.Min(values),
		Max:    slices.Max(values),
	}
}

// Percentile returns the value that p percent of values are not above, between
// two of them by linear interpolation; NaN if there are none.
func Percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	at := p / 100 * float64(len(sorted)-1)
	below := int(at)
	if below+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[below] + (at-float64(below))*(sorted[below+1]-sorted[below])
}

// Ratios divides a by b, value by value. The numbers of values can differ, as slow
// subjects are measured less often. Then each value of the longer one is compared with
// the median of the other.
func Ratios(a, b []float64) []float64 {
	if len(a) == 0 || len(b) == 0 {
		return nil
	}
	ratios := make([]float64, max(len(a), len(b)))
	for i := range ratios {
		ratios[i] = at(a, i, len(ratios)) / at(b, i, len(ratios))
	}
	return ratios
}

func at(values []float64, i, n int) float64 {
	if len(values) == n {
		return values[i]
	}
	return Percentile(values, 50)
}
