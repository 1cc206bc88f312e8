package reload

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/serpent"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/optiontable"
)

// one is a configuration of one number.
type one struct {
	number  int64
	options serpent.OptionSet
}

func (o *one) Options() serpent.OptionSet { return o.options }
func (o *one) Validate() error            { return nil }

func configuration(t *testing.T, number string) *one {
	t.Helper()
	o := new(one)
	o.options = serpent.OptionSet{{Flag: "number", Default: "1", Value: optiontable.AtLeast(&o.number, 1)}}
	optiontable.MarkReloadable(o.options, []string{"number"})
	require.NoError(t, o.options.SetDefaults())
	require.NoError(t, o.options[0].Value.Set(number))
	return o
}

// If a part refuses what the checks let through, those before it get back what they had.
func TestReloadIsAllOrNothing(t *testing.T) {
	p := new(Parts[*one])
	p.Start(configuration(t, "1"))
	has := []int64{1, 1}
	refuses := errors.New("no")
	used := 0
	p.Add("first", func(o *one) error { has[0] = o.number; return nil }, func() any { return has[0] })
	p.Add("second", func(o *one) error {
		if o.number == 2 {
			return refuses
		}
		has[1] = o.number
		return nil
	}, func() any { return has[1] })
	p.AddFiles("files", func(*one, *slog.Logger) (func() bool, error) { return func() bool { used++; return true }, nil })
	number := "2"
	var logged bytes.Buffer
	r, err := New(func(*slog.Logger) (*Change, error) { return p.Prepare(configuration(t, number), slog.Default()) }, 5, error.Error,
		prometheus.NewPedanticRegistry(), slog.New(slog.NewTextHandler(&logged, nil)))
	require.NoError(t, err)
	require.Empty(t, r.Warnings())

	require.Equal(t, "second: no", r.Reload().Error)
	require.Equal(t, []int64{1, 1}, has)
	require.Zero(t, used)
	require.Len(t, r.Warnings(), 1)
	require.Contains(t, logged.String(), "level=WARN msg=\"the configuration was not reloaded: all stays as it was\" error=\"second: no\"")

	number = "3"
	o := r.DryRun()
	require.Equal(t, "changed: --number: 1 -> 3", o.String())
	require.Equal(t, []int64{1, 1}, has)
	o = r.Reload()
	require.Equal(t, "changed: --number: 1 -> 3; files: files", o.String())
	require.Equal(t, []int64{3, 3}, has)
	require.Equal(t, 1, used)
	require.Empty(t, r.Warnings())
	again, err := json.Marshal(r.Reload())
	require.NoError(t, err)
	require.JSONEq(t, `{"changed": [], "files": ["files"], "need_restart": []}`, string(again))
}

func TestLogLevelIsAnotherForAWhile(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := NewLogLevel(slog.LevelInfo)
		l.SetFor(slog.LevelDebug, time.Minute)
		require.Equal(t, slog.LevelDebug, l.Level())
		l.Configure(slog.LevelWarn)
		require.Equal(t, slog.LevelDebug, l.Level(), "a reload does not end it")
		time.Sleep(30 * time.Second)
		l.SetFor(slog.LevelError, time.Minute)
		time.Sleep(45 * time.Second)
		require.Equal(t, slog.LevelError, l.Level(), "the first time is over")
		time.Sleep(20 * time.Second)
		require.Equal(t, slog.LevelWarn, l.Level())
		l.Configure(slog.LevelInfo)
		require.Equal(t, slog.LevelInfo, l.Level())
	})
}

// A change of the level is logged, whichever of both levels logs more.
func TestLogLevelIsLogged(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var out strings.Builder
		l := NewLogLevel(slog.LevelInfo)
		l.LogTo(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: l})))
		for n, level := range []string{"debug", "error", "warn", "error", "debug", "debug"} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/-/log-level?for=10m&level="+level, http.NoBody)
			l.ServeHTTP(httptest.NewRecorder(), r)
			require.Equal(t, n+1, strings.Count(out.String(), "\n"), out.String())
			require.Contains(t, out.String(), "log_level="+strings.ToUpper(level)+" for=10m0s then=INFO")
		}
		time.Sleep(10 * time.Minute)
	})
}
