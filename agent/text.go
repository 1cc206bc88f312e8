package agent

import (
	"strings"
	"unicode/utf8"
)

// CutText returns the start of text, at most limit >= 0 bytes, without splitting a
// character. It is a part of text. Text that is not UTF-8 is cut at any byte.
func CutText(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	end := limit
	for end > max(0, limit-utf8.UTFMax) && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end]
}

// ShortenText returns text as UTF-8 of at most limit >= 0 bytes. Longer text is cut,
// and U+FFFD takes the place of what is no character. Text that is already so is
// returned itself. Other text is a copy, so that the rest of it does not stay in
// memory.
func ShortenText(text string, limit int) string {
	if len(text) <= limit && utf8.ValidString(text) {
		return text
	}
	return strings.Clone(CutText(strings.ToValidUTF8(CutText(text, limit), "\uFFFD"), limit))
}
