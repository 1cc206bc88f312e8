package memorylimit

import (
	"cmp"
	"log/slog"
	"math"
	"os"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

func TestLower(t *testing.T) {
	none := func() (uint64, error) { return 0, memlimit.ErrNoLimit }
	require.Zero(t, lower(math.MaxInt64, none))
	require.Equal(t, 1000.0, lower(900, none))
	require.Equal(t, 1000.0, lower(900, memlimit.Limit(1001)))
	require.Equal(t, 999.0, lower(900, memlimit.Limit(999)), "Go would let it take more")
	require.Equal(t, 4.0, lower(math.MaxInt64, memlimit.Limit(4)))
}

func TestCollector(t *testing.T) {
	require.GreaterOrEqual(t, testutil.ToFloat64(Collector()), 0.0)
}

// Go keeps below the container's limit, unless an operator gave it one.
func TestSet(t *testing.T) {
	const mib = 1 << 20
	none := func() (uint64, error) { return 0, memlimit.ErrNoCgroup }
	for name, tc := range map[string]struct {
		environment string // empty: not set
		container   memlimit.Provider
		want        int64 // 0: as it was
		logged      string
	}{
		"container":         {"", memlimit.Limit(1000 * mib), 900 * mib, "gomemlimit_bytes=943718400"},
		"operator":          {"500MiB", memlimit.Limit(1000 * mib), 0, ""},
		"none":              {"", none, 0, ""},
		"operator, no such": {"500MiB", none, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			before := debug.SetMemoryLimit(-1)
			defer debug.SetMemoryLimit(before)
			t.Setenv(variable, tc.environment) // which is restored
			if tc.environment == "" {
				require.NoError(t, os.Unsetenv(variable))
			}
			var log strings.Builder
			set(tc.container, slog.New(slog.NewTextHandler(&log, nil)))
			require.Equal(t, cmp.Or(tc.want, before), debug.SetMemoryLimit(-1))
			require.Contains(t, log.String(), tc.logged)
			require.Equal(t, tc.logged == "", log.Len() == 0)
			if tc.environment == "" {
				require.EqualValues(t, math.MaxInt64, configured(), "what Set has set is no limit of an operator's")
			} else {
				require.Equal(t, before, configured())
			}
		})
	}
}

func BenchmarkCollector(b *testing.B) {
	c := Collector()
	for b.Loop() {
		testutil.ToFloat64(c)
	}
}
