package optiontable

import (
	"errors"
	"regexp"
)

// goErrors are what Go's parsers say of a value, and how users are told.
var goErrors = []struct {
	pattern *regexp.Regexp
	plain   string
}{
	{regexp.MustCompile(`strconv\.ParseInt: parsing ` + quoted + `: invalid syntax`), "want a whole number, got ${1}"},
	{regexp.MustCompile(`strconv\.ParseInt: parsing ` + quoted + `: value out of range`), "the number ${1} is too large"},
	{regexp.MustCompile(`strconv\.ParseBool: parsing ` + quoted + `: invalid syntax`), "want true or false, got ${1}"},
	{regexp.MustCompile(`time: (?:missing unit in|unknown unit ` + anyQuoted + ` in|invalid) duration ` + quoted), "want a time such as 30s, 5m or 1h30m, got ${1}"},
}

// Patterns of a text in double quotes, as a group and not.
const (
	anyQuoted = `"(?:[^"\\]|\\.)*"`
	quoted    = `(` + anyQuoted + `)`
)

// PlainText returns the text of an error of an option's value without what only those
// who write Go understand.
func PlainText(text string) string {
	for _, e := range goErrors {
		text = e.pattern.ReplaceAllString(text, e.plain)
	}
	return text
}

// plainError is PlainText of an error.
func plainError(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(PlainText(err.Error()))
}
