package outage

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
)

// logged has what is logged, without times.
type logged struct{ bytes.Buffer }

func (l *logged) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// take returns the lines since the last call.
func (l *logged) take() []string {
	text := strings.TrimSpace(l.String())
	l.Reset()
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

// An outage of a thousand agents is a line when it begins, one a minute, and one when it
// ends.
func TestOutageIsFewLines(t *testing.T) {
	l := &logged{}
	log, now, ctx := New(l.logger(), Sessions), time.Unix(1000, 0), t.Context()
	agents := make([]*Subject, 1000)
	for i := range agents {
		agents[i] = log.Subject(l.logger().With("agent", i))
	}
	for range 5 {
		for _, a := range agents {
			a.Failed(ctx, now, codes.Unavailable, "error", "no way")
		}
		now = now.Add(30 * time.Second)
	}
	const warning = "level=WARN msg=\"agents have no session with the service\" "
	require.Equal(t, []string{
		warning + "agent=0 agents=1 for=0s failures=1 error=\"no way\"",
		warning + "agent=0 agents=1000 for=1m0s failures=2000 error=\"no way\"",
		warning + "agent=0 agents=1000 for=2m0s failures=2000 error=\"no way\"",
	}, l.take())
	agents[0].Unneeded(ctx, now)
	for _, a := range agents[1:] {
		require.Empty(t, l.take())
		a.Opened(ctx, now)
	}
	require.Equal(t, []string{"level=INFO msg=\"agents have their sessions with the service again\" agents=999 after=2m30s"}, l.take())

	// The next one within a minute is logged if it lasts.
	fail := func(code codes.Code) {
		t.Helper()
		agents[0].Failed(ctx, now, code)
	}
	fail(codes.Unavailable)
	agents[0].Opened(ctx, now)
	fail(codes.Unavailable)
	require.Empty(t, l.take())
	now = now.Add(time.Minute)
	fail(codes.Unavailable)
	require.Equal(t, []string{warning + "agent=0 agents=1 for=1m0s failures=2"}, l.take())
	// What is of an agent is another outage. The first one has ended without a session.
	fail(codes.NotFound)
	require.Equal(t, []string{warning + "agent=0 agents=1 for=0s failures=1"}, l.take())
	agents[0].Opened(ctx, now)
	agents[0].Opened(ctx, now)
	require.Equal(t, []string{"level=INFO msg=\"agents have their sessions with the service again\" agents=1 after=0s"}, l.take())
	agents[1].Unneeded(ctx, now)
	require.Empty(t, l.take())
}
