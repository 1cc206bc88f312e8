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
	if n, ok := whole(v); ok {
		return strconv.AppendInt(dst, n, 10)
	}
	if text, ok := appendDecimal(dst, v); ok {
		return text
	}
	switch {
	case math.IsInf(v, 1):
		return append(dst, "+Inf"...)
	case math.IsInf(v, -1):
		return append(dst, "-Inf"...)
	}
	return strconv.AppendFloat(dst, v, 'g', -1, 64)
}

// PutTextValue writes what AppendTextValue appends to the end of field, and blanks
// before it. If field, of at most MaxValueBytes, is too short it is left as it is,
// and the result is false.
func PutTextValue(field []byte, v float64) (fits bool) {
	if n, ok := whole(v); ok && n >= 0 {
		return putUint(field, uint64(n))
	}
	var scratch [MaxValueBytes]byte
	text := AppendTextValue(scratch[:0], v)
	blanks := len(field) - len(text)
	if blanks < 0 {
		return false
	}
	copy(field[blanks:], text)
	for i := range blanks {
		field[i] = ' '
	}
	return true
}

// whole returns v as a whole number, if it is one up to 2^53 and not -0.
func whole(v float64) (n int64, ok bool) {
	const exact = 1 << 53
	if !(v >= -exact && v <= exact) {
		return 0, false
	}
	n = int64(v)
	return n, float64(n) == v && (n != 0 || !math.Signbit(v))
}

// digitPairs has the numbers from 00 to 99.
const digitPairs = "0001020304050607080910111213141516171819" +
	"2021222324252627282930313233343536373839" +
	"4041424344454647484950515253545556575859" +
	"6061626364656667686970717273747576777879" +
	"8081828384858687888990919293949596979899"

// putUint is PutTextValue of a whole number. Most values are some, and to write
// them where they stand takes half of what it takes to append and copy them.
func putUint(field []byte, n uint64) (fits bool) {
	if len(field) == 0 || n >= pow10[min(len(field), len(pow10)-1)] {
		return false
	}
	i := len(field)
	for n >= 100 {
		pair := n % 100 * 2
		n /= 100
		i -= 2
		field[i], field[i+1] = digitPairs[pair], digitPairs[pair+1]
	}
	if n >= 10 {
		i--
		field[i] = '0' + byte(n%10)
		n /= 10
	}
	i--
	field[i] = '0' + byte(n)
	for i--; i >= 0; i-- {
		field[i] = ' '
	}
	return true
}

// pow10 has the powers of ten up to the first above 2^53.
var pow10 = func() (p [17]uint64) {
	p[0] = 1
	for i := range len(p) - 1 {
		p[i+1] = 10 * p[i]
	}
	return p
}()

// appendDecimal appends a value that is not whole. It returns false if the value has
// more than six decimals, or is written with an exponent. Many measured values have
// fewer: percents, milliseconds, microseconds as seconds. It takes a third of the time
// of strconv, with the same result. No two decimal numbers of up to 15 digits are the
// same float64. So the one that parses to v is the shortest.
func appendDecimal(dst []byte, v float64) ([]byte, bool) {
	const scale = 1e6
	a := math.Abs(v)
	if !(a >= 1e-4 && a < 1e6) { // nor NaN
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
