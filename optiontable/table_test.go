package optiontable

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coder/serpent"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// table is one of options of each type.
type table struct {
	number int64
	size   int64
	wait   time.Duration
	on     bool
	text   string
	list   []string
	level  string
}

func (t *table) options() serpent.OptionSet {
	group := &serpent.Group{Name: "Group", YAML: "group", Description: "Of a test."}
	options := serpent.OptionSet{
		{Flag: "number", YAML: "number", Default: "5", Value: AtLeast(&t.number, 1), Group: group, Description: "A number."},
		{Flag: "size", YAML: "size", Default: "64KiB", Value: BytesAtLeast(&t.size, 1), Group: group, Description: "A size."},
		{Flag: "wait", YAML: "wait", Default: "1h", Value: Positive(&t.wait), Group: group, Description: "A time."},
		{Flag: "on", YAML: "on", Default: "false", Value: serpent.BoolOf(&t.on), Group: group, Description: "A switch."},
		{Flag: "text", YAML: "text", Value: serpent.StringOf(&t.text), Group: group, Description: "A text."},
		{Flag: "list", YAML: "list", Default: "a,b", Value: serpent.StringArrayOf(&t.list), Group: group, Description: "A list."},
		{Flag: "level", YAML: "level", Default: "low", Value: serpent.EnumOf(&t.level, "low", "high"), Group: group, Description: "A level."},
	}
	MarkReloadable(options, []string{"number", "size", "list"})
	return options
}

// read returns a table as values of flags make it.
func read(t *testing.T, values map[string]string) (*table, serpent.OptionSet) {
	t.Helper()
	var of table
	options := of.options()
	for flag, value := range values {
		o := options.ByFlag(flag)
		require.NoError(t, o.Value.Set(value))
		o.ValueSource = serpent.ValueSourceFlag
	}
	require.NoError(t, options.SetDefaults())
	return &of, options
}

func TestGivenIsAppliedAgain(t *testing.T) {
	want, options := read(t, map[string]string{"number": "7", "text": "x", "list": `c,"d,e"`, "size": "3MiB", "wait": "90s"})
	var again table
	next := again.options()
	require.NoError(t, GivenIn(options).Apply(next))
	require.Equal(t, *want, again)
	require.Equal(t, []string{"c", "d,e"}, again.list)
	require.Equal(t, Hash(options), Hash(next))
	require.Equal(t, serpent.ValueSourceFlag, next.ByFlag("text").ValueSource)
	require.Equal(t, serpent.ValueSourceDefault, next.ByFlag("level").ValueSource)
}

func TestSettle(t *testing.T) {
	_, inForce := read(t, map[string]string{"text": "nats://u:hunter2@h", "wait": "2h"})
	now, next := read(t, map[string]string{"number": "6", "list": "", "text": "nats://u:hunter3@h", "wait": "3h"})
	changed, needRestart, err := Settle(inForce, next)
	require.NoError(t, err)
	require.Equal(t, []Difference{{"number", "5", "6"}, {"list", "a,b", ""}}, changed)
	require.Equal(t, []Difference{{"wait", "2h", "3h"}, {"text", "nats://u:xxxxx@h", "nats://u:xxxxx@h"}}, needRestart)
	require.Equal(t, "nats://u:hunter2@h", now.text, "it stays")
	require.Equal(t, 2*time.Hour, now.wait)
	require.EqualValues(t, 6, now.number)
	require.NotEqual(t, Hash(inForce), Hash(next))
}

// What is printed sets the same values, but for secrets.
func TestPrintIsAFile(t *testing.T) {
	want, options := read(t, map[string]string{"number": "7", "text": `a "b" # c`, "list": "c", "wait": "90s", "level": "high", "on": "true"})
	var b strings.Builder
	require.NoError(t, Print(&b, options))
	require.Contains(t, b.String(), "  wait: 1m30s # flag\n")
	require.Contains(t, b.String(), "  size: 64KiB # default\n")
	path := t.TempDir() + "/config.yaml"
	require.NoError(t, os.WriteFile(path, []byte(b.String()), 0o600))
	var again table
	next := again.options()
	require.NoError(t, next.SetDefaults())
	require.NoError(t, ApplyFile(path, next))
	require.Equal(t, *want, again)
}

// The hash is a metric: nobody can try passwords by it.
func TestHash(t *testing.T) {
	hash := func(url string) uint64 {
		return Hash(serpent.OptionSet{{Flag: "url", Value: serpent.StringOf(&url)}})
	}
	require.Equal(t, hash("postgres://u:one@h/d"), hash("postgres://u:two@h/d"))
	require.NotEqual(t, hash("postgres://u:one@h/d"), hash("postgres://u:one@i/d"))
}

func TestShown(t *testing.T) {
	for value, want := range map[string]string{
		"postgres://u:p%40w@h:5432/d?sslpassword=x&a=b":             "postgres://u:xxxxx@h:5432/d?sslpassword=xxxxx&a=b",
		"nats://abc@h:4222,nats://def@i:4222":                       "nats://xxxxx@h:4222,nats://xxxxx@i:4222",
		"agentstatsd://h:2113?token=abc&ca_file=x":                  "agentstatsd://h:2113?token=xxxxx&ca_file=x",
		"agentstatsd://h:2113?token_file=/etc/token&plaintext=true": "agentstatsd://h:2113?token_file=/etc/token&plaintext=true",
		"http://127.0.0.1:2112":                                     "http://127.0.0.1:2112",
	} {
		require.Equal(t, want, Shown(&serpent.Option{Value: serpent.StringOf(&value)}))
	}
	for value, want := range map[time.Duration]string{
		0: "0s", time.Hour: "1h", 90 * time.Minute: "1h30m", 10 * time.Minute: "10m", 90 * time.Second: "1m30s", time.Hour + time.Second: "1h0m1s", 15 * time.Second: "15s",
	} {
		require.Equal(t, want, Shown(&serpent.Option{Value: serpent.DurationOf(&value)}))
	}
}

// A size that is written is read as the same.
func TestBytesProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, largestInteger).Draw(t, "bytes") << rapid.IntRange(0, 20).Draw(t, "shift")
		if n > largestInteger {
			n = largestInteger
		}
		var b Bytes
		if err := b.Set(FormatBytes(n)); err != nil || int64(b) != n {
			t.Fatalf("%d is written %s and read as %d: %v", n, FormatBytes(n), b, err)
		}
	})
	var b Bytes
	for text, want := range map[string]string{
		"": "want bytes", "MiB": "want bytes", "-1MiB": "want bytes", "1.5MiB": "want bytes", "9999999TiB": "is above the largest value 1TiB", "x": "want bytes",
	} {
		require.ErrorContains(t, b.Set(text), want, text)
	}
	require.NoError(t, b.Set("12B"))
	require.EqualValues(t, 12, b)
}

func TestHelpAndManual(t *testing.T) {
	var of table
	c := &serpent.Command{
		Use: "prog", Short: "Does things.", Long: "Start here:\n\n  prog run", Children: []*serpent.Command{
			{Use: "run", Short: "Runs.", Options: append(serpent.OptionSet{{Flag: "own", FlagShorthand: "o", Value: serpent.BoolOf(new(bool)), Description: "Its own."}}, of.options()...)},
			{Use: "check", Short: "Checks."},
		},
	}
	require.Equal(t, "Usage: prog <command>\n\nDoes things.\n\nStart here:\n\n  prog run\n\nCommands:\n  run    Runs.\n  check  Checks.\n", help(c, nil, c.Children))
	text := help(c.Children[0], c.Children[0].Options, nil)
	require.Contains(t, text, "\nOptions:\n  -o, --own\n          Its own.\n\nGroup. Of a test.\n  --number number (default 5)\n          A number. Can be reloaded.\n")
	require.Contains(t, text, "  --level low|high (default low)\n")
	var b strings.Builder
	require.NoError(t, Man(&b, c, "v1"))
	require.Contains(t, b.String(), ".TP\n.B \\-\\-size bytes (default 64KiB)\nA size. Can be reloaded.\nIn the file: group.size.\n")
	var long strings.Builder
	writeWrapped(&long, strings.Repeat("word ", 100), 10)
	for line := range strings.SplitSeq(long.String(), "\n") {
		require.LessOrEqual(t, len(line), helpWidth)
	}
}
