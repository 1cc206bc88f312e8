package console

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// unknown stands where nothing is known.
const unknown = "–"

func rfc3339(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// number returns a count with its thousands apart, or a value with three digits. v is a
// float64, an int, or a *float64 that may be nil.
func number(v any) string {
	f := asFloat(v)
	switch {
	case math.IsNaN(f):
		return unknown
	case math.IsInf(f, 1):
		return "∞"
	case math.IsInf(f, -1):
		return "−∞"
	case f == math.Trunc(f) && math.Abs(f) < 1e15:
		return thousands(strconv.FormatFloat(f, 'f', 0, 64))
	case math.Abs(f) >= 1000:
		return thousands(strconv.FormatFloat(math.Round(f), 'f', 0, 64))
	default:
		return strconv.FormatFloat(f, 'g', 3, 64)
	}
}

// asFloat returns NaN for what is absent, or no number.
func asFloat(v any) float64 {
	switch n := v.(type) {
	case float64:
		return n
	case *float64:
		if n != nil {
			return *n
		}
	case int:
		return float64(n)
	}
	return math.NaN()
}

// thousands puts a comma before each three digits of an integer.
func thousands(digits string) string {
	sign := ""
	if strings.HasPrefix(digits, "-") {
		sign, digits = "−", digits[1:]
	}
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return sign + digits
}

// size returns bytes in the largest binary unit that leaves at least one.
func size(v any) string {
	f := asFloat(v)
	if math.IsNaN(f) {
		return unknown
	}
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for math.Abs(f) >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	return significant(f) + " " + units[i]
}

// duration returns seconds as people say them, in at most two units.
func duration(v any) string {
	s := asFloat(v)
	switch {
	case math.IsNaN(s) || math.IsInf(s, 0):
		return unknown
	case s < 0:
		return "−" + duration(-s)
	case s == 0:
		return "0 s"
	case s < 0.001:
		return significant(s*1e6) + " µs"
	case s < 1:
		return significant(s*1e3) + " ms"
	case s < 60:
		return significant(s) + " s"
	}
	whole := int64(math.Min(math.Round(s), 1e12))
	for _, u := range []struct {
		seconds, below int64
		unit, next     string
	}{{86400, 3600, "d", "h"}, {3600, 60, "h", "min"}, {60, 1, "min", "s"}} {
		if n := whole / u.seconds; n > 0 {
			rest := whole % u.seconds / u.below
			if rest == 0 {
				return fmt.Sprintf("%d %s", n, u.unit)
			}
			return fmt.Sprintf("%d %s %d %s", n, u.unit, rest, u.next)
		}
	}
	return unknown
}

// significant returns a positive number with up to three digits.
func significant(f float64) string {
	digits := 0
	switch {
	case f < 10:
		digits = 2
	case f < 100:
		digits = 1
	}
	s := strconv.FormatFloat(f, 'f', digits, 64)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s
}

// valueOf returns a value with its unit, as charts have it.
func valueOf(unit string, v float64) string {
	switch unit {
	case "bytes":
		return size(v)
	case "seconds":
		return duration(v)
	case "bytes per second":
		return size(v) + "/s"
	case "per second":
		return number(v) + "/s"
	default:
		return number(v)
	}
}

// limited returns what a limit counts: bytes, or a number.
func limited(name string, v any) string {
	if strings.Contains(name, "bytes") {
		return size(v)
	}
	return number(v)
}

// share returns how much of a whole a part is, from 0 to 100; NaN: it is not known.
func share(part, whole any) float64 {
	p, w := asFloat(part), asFloat(whole)
	if !(w > 0) || math.IsNaN(p) {
		return math.NaN()
	}
	return math.Max(0, math.Min(100, 100*p/w))
}

// percent returns a share as text.
func percent(of float64) string {
	switch {
	case math.IsNaN(of):
		return unknown
	case of > 0 && of < 0.1:
		return "< 0.1 %"
	default:
		return strconv.FormatFloat(of, 'f', 1, 64) + " %"
	}
}

// words returns a name of a metric as words.
func words(name string) string { return strings.ReplaceAll(name, "_", " ") }

// title returns words with a capital letter in front.
func title(words string) string {
	first, width := utf8.DecodeRuneInString(words)
	return string(unicode.ToUpper(first)) + words[width:]
}

// isSet reports whether a time is there, and one.
func isSet(t *timestamppb.Timestamp) bool { return t.IsValid() && t.AsTime().Unix() > 0 }
