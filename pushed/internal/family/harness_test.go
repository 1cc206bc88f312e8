package family

import (
	"math"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/pushed/internal/familytest"
)

// received is when the snapshots of the tests were received.
var received = time.Unix(1_790_000_000, 0)

// limits are those that the service has by default.
var limits = Limits{
	MaxFamilies: 2000, MaxLabelValueBytes: 32 << 10, MaxLabelsBytes: 40 << 10,
	MaxSeries: 200_000, MaxTotalSeries: 2_000_000, MaxRowBytes: 64 << 20,
}

// fataler is a *testing.T, *testing.B, or *rapid.T.
type fataler = familytest.T

// What the tests share with those of pushed.
var (
	serialize = familytest.Serialize
	parseText = familytest.ParseText
)

// decode returns a snapshot that is written in the text format.
func decode(t fataler, text string) Snapshot {
	t.Helper()
	return DecodeSnapshot(serialize(t, parseText(t, text)...), limits, received, false)
}

// admit returns what of a snapshot is admitted beside nobody, after old.
func admit(t fataler, old Set, text string) *Admitted {
	t.Helper()
	a := &Admission{Limits: limits, Received: received, Old: old, OldLive: true, Types: ChooseTypes([]Set{old}), MaxRowLines: math.MaxInt}
	return a.Admit(decode(t, text))
}

// render returns the family as it is served.
func render(t fataler, f *Family) string {
	t.Helper()
	r, err := Render(f)
	require.NoError(t, err)
	return string(r.Text)
}
