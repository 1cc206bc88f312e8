package agent

import (
	"strings"
	"testing"
	"unicode/utf8"
	"unsafe"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestCutText(t *testing.T) {
	for _, c := range []struct {
		text  string
		limit int
		want  string
	}{
		{"abc", 3, "abc"},
		{"abcd", 3, "abc"},
		{"aé", 2, "a"},
		{"é", 1, ""},
		{"", 0, ""},
		{"é", 0, ""},
		{"a\U0001F600", 4, "a"},
		{"a\xff", 5, "a\xff"},
		{strings.Repeat("\x80", 100), 50, strings.Repeat("\x80", 46)},
	} {
		require.Equal(t, c.want, CutText(c.text, c.limit))
	}
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String().Draw(t, "text")
		limit := rapid.IntRange(0, 20).Draw(t, "limit")
		got := CutText(text, limit)
		require.True(t, utf8.ValidString(got))
		require.True(t, strings.HasPrefix(text, got))
		require.LessOrEqual(t, len(got), limit)
		require.Greater(t, len(got)+utf8.UTFMax, min(len(text), limit))
		require.Equal(t, got, ShortenText(text, limit))
	})
}

func TestShortenText(t *testing.T) {
	for _, c := range []struct {
		text  string
		limit int
		want  string
	}{
		{"a\xff", 5, "a\uFFFD"},
		{"\xffa\xffa", 4, "\uFFFDa"}, // longer once it is UTF-8
		{"a\xffb", 2, "a"},
	} {
		require.Equal(t, c.want, ShortenText(c.text, c.limit))
	}
	rapid.Check(t, func(t *rapid.T) {
		text := string(rapid.SliceOf(rapid.Byte()).Draw(t, "text"))
		limit := rapid.IntRange(0, 20).Draw(t, "limit")
		got := ShortenText(text, limit)
		require.True(t, utf8.ValidString(got))
		require.LessOrEqual(t, len(got), limit)
	})
}

// What is kept of a long name or help text is a copy: the rest is not kept with it.
func TestShortenTextCopies(t *testing.T) {
	long := strings.Repeat("n", 1<<20)
	kept := ShortenText(long, 200)
	require.Len(t, kept, 200)
	require.NotSame(t, unsafe.StringData(long), unsafe.StringData(kept))
	require.Same(t, unsafe.StringData(long), unsafe.StringData(ShortenText(long, 1<<20)))
}
