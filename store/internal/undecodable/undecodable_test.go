package undecodable

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
)

// Many rows are counted, and few of them logged.
func TestUndecodableRowsAreLimited(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		rows := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rows"}, []string{"kind"})
		u := New(rows, slog.New(slog.NewTextHandler(&log, nil)))
		bad := func(from, to int) {
			for range 2 {
				for n := from; n < to; n++ {
					u.Report(t.Context(), "states", fmt.Sprint("row ", n), errors.New("bad"), time.Now())
				}
			}
		}
		bad(0, 1000)
		require.EqualValues(t, 1000, testutil.ToFloat64(rows.WithLabelValues("states")))
		require.Equal(t, maxLogged+1, strings.Count(log.String(), "\n"))
		time.Sleep(time.Hour)
		bad(1000, 1001)
		require.Contains(t, log.String(), `row="row 1000"`)
		bad(1001, maxKnown+10)
		require.EqualValues(t, maxKnown, testutil.ToFloat64(rows.WithLabelValues("states")))
		require.Len(t, u.known, maxKnown)
	})
}
