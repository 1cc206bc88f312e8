package scrape

import "strings"

// chooseGzip reports whether a response is compressed for a client with these values
// of Accept-Encoding; ok is false if it takes neither gzip nor identity. RFC 9110,
// section 12.5.3: names are in any case, x-gzip is gzip, "*" is what is not named,
// and identity is taken unless it is excluded. The greater weight wins; of equal ones
// gzip does.
func chooseGzip(values []string) (gzip, ok bool) {
	const unnamed = -1
	gzipWeight, identityWeight, anyWeight := unnamed, unnamed, unnamed
	for _, value := range values {
		for item := range strings.SplitSeq(value, ",") {
			coding, params, _ := strings.Cut(item, ";")
			weight := weightOf(params)
			switch strings.ToLower(strings.Trim(coding, " \t")) {
			case "gzip", "x-gzip":
				gzipWeight = max(gzipWeight, weight)
			case "identity":
				identityWeight = max(identityWeight, weight)
			case "*":
				anyWeight = max(anyWeight, weight)
			}
		}
	}
	if gzipWeight == unnamed {
		gzipWeight = max(anyWeight, 0)
	}
	if identityWeight == unnamed && anyWeight == 0 {
		identityWeight = 0
	}
	switch {
	case gzipWeight > 0 && gzipWeight >= identityWeight:
		return true, true
	default:
		return false, identityWeight != 0
	}
}

// weightOf returns the parameter q in thousandths: 1000 if there is none, 0 if it is
// not what RFC 9110, section 12.4.2, allows.
func weightOf(params string) int {
	for param := range strings.SplitSeq(params, ";") {
		name, value, _ := strings.Cut(param, "=")
		if strings.EqualFold(strings.Trim(name, " \t"), "q") {
			return parseWeight(strings.Trim(value, " \t"))
		}
	}
	return 1000
}

// parseWeight parses 0, 1, and up to three digits behind a point.
func parseWeight(text string) int {
	whole, digits, _ := strings.Cut(text, ".")
	if whole != "0" && whole != "1" || len(digits) > 3 {
		return 0
	}
	weight := 0
	for i := range 3 {
		weight *= 10
		if i < len(digits) {
			if digits[i] < '0' || digits[i] > '9' {
				return 0
			}
			weight += int(digits[i] - '0')
		}
	}
	if whole == "1" {
		if weight > 0 {
			return 0
		}
		return 1000
	}
	return weight
}
