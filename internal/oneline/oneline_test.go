package oneline

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestText(t *testing.T) {
	for text, want := range map[string]string{
		"":             "",
		"one":          "one",
		"one\ntwo\n":   "one; two",
		"a:\n\tb\n\tb": "a: b",
		"a:\n\tb\n\tc": "a: b; c",
		"a\n\n b \r\n": "a; b",
	} {
		require.Equal(t, want, Text(text), "%q", text)
	}
}
