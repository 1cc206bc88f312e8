package recurring

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
)

func TestOneLineAMinute(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var e Events
		for _, level := range []slog.Level{slog.LevelInfo, slog.LevelDebug} {
			var out bytes.Buffer
			log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level}))
			note := func(n int) string {
				out.Reset()
				e.Log(context.Background(), log, slog.LevelWarn, "rows", n, "refused", "error", "x")
				_, line, _ := strings.Cut(strings.TrimSpace(out.String()), " ")
				return line
			}
			require.Equal(t, "level=WARN msg=refused rows=3 error=x", note(3), "the first one at once")
			for range 59 {
				time.Sleep(time.Second)
				want := ""
				if level == slog.LevelDebug {
					want = "level=DEBUG msg=refused rows=2 error=x"
				}
				require.Equal(t, want, note(2))
			}
			time.Sleep(time.Second)
			require.Equal(t, "level=WARN msg=refused rows=119 error=x", note(1))
			time.Sleep(time.Hour)
			require.Equal(t, "level=WARN msg=refused rows=1 error=x", note(1))
			time.Sleep(time.Hour)
		}
	})
}
