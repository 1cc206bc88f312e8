// Package oneline makes texts of several lines one line of a log.
package oneline

import (
	"slices"
	"strings"
)

// Text joins the lines of text, each of them once. Of a server that it asks with TLS and
// without, a driver says the same twice.
func Text(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return strings.ReplaceAll(strings.Join(lines, "; "), ":; ", ": ")
}
