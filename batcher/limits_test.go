package batcher

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// goldenEntry is an entry in testdata/metadata_limits.json; the lengths stand
// for that many letters.
type goldenEntry struct {
	Key      string `json:"key"`
	KeyLen   int    `json:"key_len"`
	Value    string `json:"value"`
	ValueLen int    `json:"value_len"`
	Error    string `json:"error"`
	ErrorLen int    `json:"error_len"`
}

func (g goldenEntry) entry() agent.MetadataEntry {
	letters := func(text string, n int) string { return text + strings.Repeat("x", n) }
	return agent.MetadataEntry{
		Key:   letters(g.Key, g.KeyLen),
		Value: letters(g.Value, g.ValueLen),
		Error: letters(g.Error, g.ErrorLen),
	}
}

// The vectors of Coder's own rules. Some differ here on purpose, by the rule that
// replaces them.
func TestLimitsGolden(t *testing.T) {
	data, err := os.ReadFile("testdata/metadata_limits.json")
	require.NoError(t, err)
	var golden struct {
		Cases []struct {
			Name     string          `json:"name"`
			In       []goldenEntry   `json:"in_"`
			Stored   json.RawMessage `json:"stored"`
			RPCError *string         `json:"rpc_error"`
		} `json:"cases"`
		Limits struct {
			Keys  int `json:"all_keys_bytes"`
			Value int `json:"value_bytes"`
			Error int `json:"error_bytes"`
		} `json:"limits"`
	}
	require.NoError(t, json.Unmarshal(data, &golden))
	require.Equal(t, MaxReportKeyBytes, golden.Limits.Keys)
	require.Equal(t, MaxValueBytes, golden.Limits.Value)
	require.Equal(t, MaxErrorBytes, golden.Limits.Error)
	require.Len(t, golden.Cases, 9)

	for _, c := range golden.Cases {
		t.Run(c.Name, func(t *testing.T) {
			var in, want []agent.MetadataEntry
			for _, g := range c.In {
				in = append(in, g.entry())
			}
			if strings.HasPrefix(c.Name, "keys ") {
				in = shortKeys(in) // Coder has no limit of a key
			}
			switch c.Name {
			case "keys total exactly at the limit":
				want = in
			case "keys over: the crossing key and all after it are discarded, the ones before are stored, the call fails":
				want = in[:len(in)-2]
			case "multi-byte value cut in the middle of a character":
				// Coder cuts at byte 2048 and stores half a character; here the cut
				// is before it.
				in = []agent.MetadataEntry{{Key: "a", Value: "a" + strings.Repeat("\u00e9", 1024)}}
				want = []agent.MetadataEntry{{
					Key:   "a",
					Value: "a" + strings.Repeat("\u00e9", 1023),
					Error: "value of 2049 bytes exceeded 2048 bytes",
				}}
			case "key the template does not declare":
				// Coder's UPDATE matches no row. Here such a key is refused before
				// it gets this far, where the declared keys are known.
				want = in
			default:
				var stored []goldenEntry
				require.NoError(t, json.Unmarshal(c.Stored, &stored))
				for _, g := range stored {
					want = append(want, g.entry())
				}
			}
			var refused refusals
			require.Equal(t, want, limitReport(nil, in, &refused))
			if c.RPCError == nil {
				require.Empty(t, refused.list)
				return
			}
			require.Len(t, refused.list, 1)
			require.Equal(t, *c.RPCError, refused.list[0].Message)
		})
	}
}

// shortKeys has several entries in place of each with a long key.
func shortKeys(entries []agent.MetadataEntry) (short []agent.MetadataEntry) {
	for _, e := range entries {
		for len(e.Key) > agent.MaxMetadataKeyBytes {
			short = append(short, agent.MetadataEntry{Key: e.Key[:agent.MaxMetadataKeyBytes], Value: e.Value})
			e.Key = e.Key[agent.MaxMetadataKeyBytes:]
		}
		short = append(short, e)
	}
	return short
}

func TestLimitsRefusals(t *testing.T) {
	long, longest := strings.Repeat("\u00e9", 150), strings.Repeat("k", agent.MaxMetadataKeyBytes)
	var refused refusals
	kept := limitReport(nil, []agent.MetadataEntry{
		{Key: "a"}, {Key: ""}, {Key: "b\x00"}, {Key: "b\xff"}, {Key: "a", Value: "again"},
		{Key: longest}, {Key: longest + "k"}, {Key: strings.Repeat("m", 3790)}, {Key: long}, {Key: "c"},
	}, &refused)
	require.Equal(t, []agent.MetadataEntry{{Key: "a"}, {Key: "a", Value: "again"}, {Key: longest}}, kept)
	require.Equal(t, []agent.Refusal{
		{Kind: agent.RefusedInvalid, Reason: "empty_key", Message: "metadata key is empty", Names: []string{""}, Count: 1},
		{
			Kind: agent.RefusedInvalid, Reason: "invalid_key", Message: "metadata key has a NUL byte or is not UTF-8",
			Names: []string{"b\uFFFD", "b\uFFFD"}, Count: 2,
		},
		{
			Kind: agent.RefusedInvalid, Reason: "key_length", Message: "metadata key of 1025 bytes exceeded 1024 bytes",
			Names: []string{strings.Repeat("k", 200), strings.Repeat("m", 200)}, Count: 2,
		},
		{
			Kind: agent.RefusedLimit, Reason: "key_bytes", Message: "metadata keys of 6145 bytes exceeded 6144 bytes",
			Names: []string{strings.Repeat("\u00e9", 100), "c"}, Count: 2,
		},
	}, refused.list)
	require.Equal(t, 2, refused.count(dropInvalidKey))
	require.Zero(t, refused.count(dropCapacity))

	var many refusals
	for range 2 * agent.MaxRefusalNames {
		limitReport(nil, []agent.MetadataEntry{{}}, &many)
	}
	require.Len(t, many.list, 1)
	require.Len(t, many.list[0].Names, agent.MaxRefusalNames)
	require.Equal(t, 2*agent.MaxRefusalNames, many.list[0].Count)
}

// White space around a text counts nothing and is not stored, as in Coder.
func TestLimitTextsTrims(t *testing.T) {
	whole := strings.Repeat("x", MaxValueBytes)
	for _, c := range []struct{ value, text, wantValue, wantText string }{
		{" 0.42 load\n", "", "0.42 load", ""},
		{"\t\n " + whole + strings.Repeat(" ", 3000), "", whole, ""},
		{" a  b ", "\texit status 1\r\n", "a  b", "exit status 1"},
		{" \n", strings.Repeat("\n", 3000), "", ""},
		{" x" + whole + " ", "", whole[1:] + "x", "value of 2049 bytes exceeded 2048 bytes"},
	} {
		value, text := limitTexts(c.value, c.text)
		require.Equal(t, c.wantValue, value)
		require.Equal(t, c.wantText, text)
	}
}

func TestLimitText(t *testing.T) {
	for _, c := range []struct {
		name, in, want string
		size           int
	}{
		{"empty", "", "", 0},
		{"at the limit", "12345678", "12345678", 8},
		{"over", "123456789", "12345678", 9},
		{"between characters", "1234567\u00e9", "1234567", 9},
		{"before a character of 4 bytes", "12345\U0001F600", "12345", 9},
		{"a character that just fits", "1234\U0001F600x", "1234\U0001F600", 9},
		{"NUL", "a\x00b", "a\uFFFDb", 5},
		{"not UTF-8", "a\xff\xfeb", "a\uFFFDb", 5},
		{"replacement makes it too long", "123456\x00", "123456", 9},
		{"only middles of characters", strings.Repeat("\x80", 20), "\uFFFD", 20},
		{"cut, then replaced, then cut", "\x0012345\x008901234", "\uFFFD12345", 14},
	} {
		text, size := limitText(c.in, 8)
		require.Equal(t, c.want, text, c.name)
		require.Equal(t, c.size, size, c.name)
	}
}

func FuzzLimitTexts(f *testing.F) {
	f.Add([]byte("value"), []byte("error"), 0)
	f.Add([]byte("\x00\xff\xc3"), []byte("\xf0\x9f\x98"), 700)
	f.Add([]byte("\u00e9"), []byte(""), 1024)
	f.Fuzz(func(t *testing.T, value, text []byte, times int) {
		times = max(1, min(times, 4096/(len(value)+len(text)+1)))
		in, inText := string(bytes.Repeat(value, times)), string(bytes.Repeat(text, times))
		out, outText := limitTexts(in, inText)
		in, inText = strings.TrimSpace(in), strings.TrimSpace(inText)
		for _, s := range []string{out, outText} {
			require.True(t, utf8.ValidString(s))
			require.NotContains(t, s, "\x00")
			require.LessOrEqual(t, len(s), 2048)
		}
		if len(in) <= MaxValueBytes && utf8.ValidString(in) && !strings.Contains(in, "\x00") {
			require.Equal(t, in, out)
		}
		if len(in) > MaxValueBytes || len(inText) > MaxErrorBytes {
			require.Contains(t, outText, "bytes exceeded 2048 bytes")
		}
	})
}
