package bridged

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/bench/figure"
	"github.com/coder/agentstatsd/bench/process"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "child" {
		if err := process.RunChild(context.Background(), Roles[os.Args[2]], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestMeasure has some agents measured for a moment.
func TestMeasure(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "agentstatsd")
	build := exec.Command("go", "build", "-trimpath", "-o", binary, "./cmd/agentstatsd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is released
	build.Dir = filepath.Join("..", "..")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	run := new(figure.Run)
	l := Load{Connections: 100, Rounds: 1, Settle: 100 * time.Millisecond, Window: 500 * time.Millisecond}
	require.NoError(t, Measure(t.Context(), run, binary, t.TempDir(), l))
	for _, subject := range Subjects {
		of := func(metric string) []float64 {
			return run.Values(figure.Key{Section: Section, Case: Case(l.Connections), Subject: subject, Metric: metric})
		}
		require.Len(t, of(P99), 1, subject)
		require.GreaterOrEqual(t, of(P99)[0], of(P50)[0])
		require.Positive(t, of(P50)[0])
		if subject != Direct {
			require.Positive(t, of(CPU)[0])
			require.Len(t, of(Held), 1)
			require.Len(t, of(Added), 1)
		}
	}
}
