package agent

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSessionsOf(t *testing.T) {
	many := func(more map[string]int64) map[string]int64 {
		for i := range 100 {
			more[fmt.Sprintf("app%03d", i)] = 1
		}
		return more
	}
	older := Sessions{VSCode: 1, JetBrains: 2, ReconnectingPTY: 3, SSH: 4}
	for _, c := range []struct {
		name     string
		counts   map[string]int64
		want     Sessions
		overflow int
	}{
		{"older fields", nil, older, 0},
		{"a map without positive entries", map[string]int64{"ssh": 0, "vscode": -5}, older, 0},
		{"a positive entry wins", map[string]int64{"ssh": 7}, Sessions{SSH: 7}, 0},
		{"families", map[string]int64{
			"vscode": 1, "cursor": 2, "windsurf": 4, "VSCodium": 8, "vscode-insiders": 16,
			"jetbrains": 32, "reconnecting_pty": 64, "reconnecting-pty": 1, "ssh": 128, "emacs": 256, "ssh\t": -3,
		}, Sessions{VSCode: 31, JetBrains: 32, ReconnectingPTY: 65, SSH: 128}, 0},
		{"newer families", map[string]int64{
			"vscode_web": 1, "code-server": 2, "codium": 4, "devin": 8, "zed": 16, "ssh": 32, "sftp": 64,
		}, Sessions{VSCode: 15, SSH: 48}, 0},
		{"names that Coder normalizes", map[string]int64{
			"z\x00ed\v": 1, "ss\u0085h": 2, "\tcursor\n": 4, strings.Repeat("\u00a0", 70) + "kiro": 8,
			"cursor" + strings.Repeat(" ", 58) + "x": 16, "cursor" + strings.Repeat(" ", 57) + "x": 32,
		}, Sessions{VSCode: 28, SSH: 3}, 0},
		{"only unknown names", map[string]int64{"emacs": 1}, Sessions{}, 0},
		{"the known ones are looked at first", many(map[string]int64{"ssh": 1, "zzz": 1, "windsurf": 2}), Sessions{SSH: 1, VSCode: 2}, 39},
		{"no overflow of the sum", map[string]int64{"vscode": math.MaxInt64, "cursor": 5}, Sessions{VSCode: math.MaxInt64}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			names, overflow := AppsOf(c.counts)
			require.Equal(t, c.overflow, overflow)
			sessions, apps := CountSessions(names, older)
			require.Equal(t, c.want, sessions)
			families := make(map[string]int64)
			var all int64
			for app, n := range apps {
				family := SessionApps[app].Family
				families[family] = SaturatingAdd(families[family], n)
				all = SaturatingAdd(all, n)
			}
			require.Equal(t, c.want, Sessions{VSCode: families["vscode"], JetBrains: families["jetbrains"], ReconnectingPTY: families["reconnecting_pty"], SSH: families["ssh"]})
			var said int64
			for _, n := range c.counts {
				said = SaturatingAdd(said, max(0, n))
			}
			if said > 0 {
				require.Equal(t, said, all, "no session is left out")
			}
		})
	}
}
