package metrics

import (
	"math"
	"strconv"
)

// AppendTextHeader appends a family's HELP and TYPE lines. Without help there
// is no HELP line.
func AppendTextHeader(dst []byte, name, help string, t Type) []byte {
	if help != "" {
		dst = append(dst, "# HELP "...)
		dst = append(dst, name...)
		dst = append(dst, ' ')
		for i := range len(help) {
			switch c := help[i]; c {
			case '\\':
				dst = append(dst, `\\`...)
			case '\n':
				dst = append(dst, `\n`...)
			default:
				dst = append(dst, c)
			}
		}
		dst = append(dst, '\n')
	}
	dst = append(dst, "# TYPE "...)
	dst = append(dst, name...)
	dst = append(dst, ' ')
	dst = append(dst, t.String()...)
	return append(dst, '\n')
}

// AppendTextLabel appends name="value" with the value escaped.
func AppendTextLabel(dst []byte, name, value string) []byte {
	dst = append(dst, name...)
	dst = append(dst, '=', '"')
	from := 0
	for i := range len(value) {
		var esc string
		switch value[i] {
		case '\\':
			esc = `\\`
		case '"':
			esc = `\"`
		case '\n':
			esc = `\n`
		default:
			continue
		}
		dst = append(dst, value[from:i]...)
		dst = append(dst, esc...)
		from = i + 1
	}
	dst = append(dst, value[from:]...)
	return append(dst, '"')
}

// MaxValueBytes is the longest text of a value: -1.7976931348623157e+308.
const MaxValueBytes = 24

// AppendTextValue appends v as the shortest text that parses to it; whole
// numbers up to 2^53 in digits only.
func AppendTextValue(dst []byte, v float64) []byte {
	const exact = 1 << 53
	if v >= -exact && v <= exact {
		if n := int64(v); float64(n) == v && (n != 0 || !math.Signbit(v)) {
			return strconv.AppendInt(dst, n, 10)
		}
		if text, ok := appendDecimal(dst, v); ok {
			return text
		}
	}
	switch {
	case math.IsInf(v, 1):
		return append(dst, "+Inf"...)
	case math.IsInf(v, -1):
		return append(dst, "-Inf"...)
	}
	return strconv.AppendFloat(dst, v, 'g', -1, 64)
}

// appendDecimal appends a value that is not whole, if it has at most six decimals
// and is of a size that is written without an exponent; else it returns false.
// Much of what is measured is of that kind: percents, milliseconds, microseconds
// as seconds. It takes a third of what strconv takes, with the same result: no two
// decimal numbers of up to 15 digits are the same float64, so the one that parses
// to v is the shortest.
func appendDecimal(dst []byte, v float64) ([]byte, bool) {
	const scale = 1e6
	a := math.Abs(v)
	if a < 1e-4 || a >= 1e6 {
		return dst, false
	}
	n := uint64(a*scale + 0.5)
	if float64(n)/scale != a {
		return dst, false
	}
	if v < 0 {
		dst = append(dst, '-')
	}
	dst = strconv.AppendUint(dst, n/scale, 10)
	dst = append(dst, '.')
	for n %= scale; n > 0; n %= scale {
		n *= 10
		dst = append(dst, '0'+byte(n/scale))
	}
	return dst, true
}
