package peer

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coder/agentstatsd/bench/load"
	"github.com/coder/agentstatsd/bench/process"
)

func TestText(t *testing.T) {
	p, err := textparse.New(text(3, 1), "text/plain; version=0.0.4", labels.NewSymbolTable(), textparse.ParserOptions{})
	require.NoError(t, err)
	n := 0
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		if entry == textparse.EntrySeries {
			n++
		}
	}
	require.Equal(t, load.PerAgent, n)
}

func TestOTLP(t *testing.T) {
	request := otlp(3, 1, time.Unix(1, 0))
	resource := only(t, request, requestResourceMetrics)
	scope := only(t, resource, resourceScopeMetrics)
	n := 0
	for len(scope) > 0 {
		number, kind, tag := protowire.ConsumeTag(scope)
		require.Equal(t, protowire.Number(scopeMetrics), number)
		require.Equal(t, protowire.BytesType, kind)
		_, length := protowire.ConsumeBytes(scope[tag:])
		require.Positive(t, length)
		scope = scope[tag+length:]
		n++
	}
	require.Equal(t, load.PerAgent, n)
}

// only returns the one field of a message.
func only(t *testing.T, text []byte, field protowire.Number) []byte {
	number, _, tag := protowire.ConsumeTag(text)
	require.Equal(t, field, number)
	value, n := protowire.ConsumeBytes(text[tag:])
	require.Len(t, text, tag+n)
	return value
}

func TestEach(t *testing.T) {
	seen := make([]bool, 100)
	require.NoError(t, each(t.Context(), len(seen), func(_ context.Context, n int) error {
		seen[n] = true
		return nil
	}))
	require.NotContains(t, seen, false)
}

func TestMissingBinary(t *testing.T) {
	for _, subject := range Subjects[1:] {
		_, err := starters[subject](t.Context(), Options{Dir: t.TempDir(), Temp: t.TempDir()})
		require.ErrorIs(t, err, os.ErrNotExist, subject)
	}
}

func TestQuiet(t *testing.T) {
	p, err := process.Start(t.Context(), "/bin/sleep", "10")
	require.NoError(t, err)
	defer p.Stop()
	start := time.Now()
	since, err := quiet(t.Context(), p)
	require.NoError(t, err)
	require.WithinDuration(t, start, since, quietFor)
}
