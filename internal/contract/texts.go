package contract

import (
	"fmt"
	"strings"
)

// maxNameBytes bounds a name in a refusal, maxRefusalText its message.
const (
	MaxNameBytes   = 200
	MaxRefusalText = 1024
)

// TextProblem returns what is wrong with a text of lo to hi bytes; empty:
// nothing. Databases cannot store a NUL.
func TextProblem(text string, lo, hi int) string {
	switch {
	case len(text) < lo || len(text) > hi:
		if lo == 0 {
			return fmt.Sprintf("want at most %d bytes, got %d", hi, len(text))
		}
		return fmt.Sprintf("want %d to %d bytes, got %d", lo, hi, len(text))
	case strings.IndexByte(text, 0) >= 0:
		return "want no NUL in it"
	}
	return ""
}
