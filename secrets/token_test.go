package secrets

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const token = "0123456789abcdef0123456789abcdef"

func TestReadToken(t *testing.T) {
	for _, content := range []string{token, token + "\n", " " + token + " \r\n\r\n", "\t" + token} {
		got, _, err := ReadToken(file(t, "token", content, 0o600))
		require.NoError(t, err)
		require.Equal(t, token, got)
	}
	wide := func(mark string, swap bool) string {
		out := []byte(mark)
		for _, u := range utf16.Encode([]rune(token)) {
			lo, hi := byte(u), byte(u>>8)
			if swap {
				lo, hi = hi, lo
			}
			out = append(out, lo, hi)
		}
		return string(out)
	}
	for content, want := range map[string]string{
		"\xef\xbb\xbf" + token:                "token begins with a byte order mark: save it without one, in ASCII",
		wide("\xff\xfe", false):               "token is text in UTF-16: save it in ASCII",
		wide("\xfe\xff", true):                "token is text in UTF-16: save it in ASCII",
		wide("", false):                       "token holds NUL bytes, as text in UTF-16 does: save it in ASCII",
		token + "\n" + token:                  "token has several lines, of which line 1 is not \"name: token\"",
		token + "\r" + token:                  "token has several lines, of which line 1 is not \"name: token\"",
		"a: " + token + "\nB: " + token:       "token has several lines, of which line 2 is not \"name: token\"",
		"a: " + token + "\na: " + token + "x": "token line 2: has the name a again",
		"a: " + token + "\nb: " + token:       "token line 2: has the token of a again",
		"a: hunter2\nb: " + token:             "token line 1: holds 7 bytes, at least 16 are needed",
		"# a\n# b\n":                          "token holds no token",
		"0123456789\x7fabcdef":                "token has a character that a token cannot have, at byte 11: want printable ASCII",
		"0123456789abcdefä":                   "token has a character that a token cannot have, at byte 17: want printable ASCII",
		"\u00a0" + token:                      "at byte 1: want printable ASCII",
		"hunter2":                             "token holds 7 bytes, at least 16 are needed",
		"":                                    "token holds 0 bytes, at least 16 are needed",
		strings.Repeat("x", maxTokenBytes+1):  "token holds 4097 bytes, at most 4096 are taken",
	} {
		_, _, err := ReadToken(file(t, "token", content, 0o600))
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "0123456789", "a token is not shown")
	}
}

func TestReadTokens(t *testing.T) {
	other := strings.ToUpper(token)
	for content, want := range map[string][]NamedToken{
		token:            {{DefaultTokenName, token}},
		"#" + token:      {{DefaultTokenName, "#" + token}},
		"blue: " + token: {{"blue", token}},
		"a:" + token:     {{DefaultTokenName, "a:" + token}},
		"# of today\r\nblue: " + token + "\r\n\n green-2:\t" + other + "\n": {{"blue", token}, {"green-2", other}},
	} {
		got, _, err := ReadTokens(file(t, "token", content, 0o600))
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	var many strings.Builder
	for i := range maxTokens + 1 {
		fmt.Fprintf(&many, "t%d: %s%d\n", i, token, i)
	}
	_, _, err := ReadTokens(file(t, "token", many.String(), 0o600))
	require.ErrorContains(t, err, "token holds 17 tokens, at most 16 are taken")
}

// Whatever stands in the file: a token can be sent in a header, and an error shows
// nothing of it.
func TestParseTokenProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		content := rapid.SliceOf(rapid.OneOf(rapid.Byte(), rapid.ByteRange(' ', '~'))).Draw(t, "content")
		got, err := parseToken(content)
		if err != nil {
			if got != "" {
				t.Fatalf("a token beside %v", err)
			}
			return
		}
		if strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r > '~' }) || strings.TrimSpace(got) != got {
			t.Fatalf("%q cannot be sent", got)
		}
		if !strings.Contains(string(content), got) || len(got) < minTokenBytes {
			t.Fatalf("%q is not what the file holds", got)
		}
	})
}
