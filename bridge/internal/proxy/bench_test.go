package proxy

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/bridge/internal/copies"
	"github.com/coder/agentstatsd/bridge/internal/decode"
	"github.com/coder/agentstatsd/internal/codertest"
)

// nobody is a handler that relays nothing.
type nobody struct{ calls int }

func (*nobody) Manifest(*decode.Manifest) {}
func (n *nobody) Call(string, []byte)     { n.calls++ }
func (*nobody) Regions(map[int64]string)  {}

// cpu returns the CPU time of the process.
func cpu(b *testing.B) int64 {
	var usage syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return usage.Utime.Nano() + usage.Stime.Nano()
}

// BenchmarkCall is a report of 2.9 kB from an agent to coderd and back. Both are part of it:
// what a way takes more than the direct one is its own.
func BenchmarkCall(b *testing.B) {
	id := uuid.UUID{1}
	coderd := &codertest.RPC{Forget: true}
	coderd.Add(codertest.Agent{ID: id, Token: "token", Manifest: codertest.Manifest{AgentID: id}.Encode()})
	upstream := httptest.NewServer(coderd)
	defer upstream.Close()
	u, err := url.Parse(upstream.URL)
	require.NoError(b, err)
	log := slog.New(slog.DiscardHandler)
	budget := decode.NewBudget(256 << 20)
	decoding := copies.New(budget)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { _ = decoding.Run(ctx) }()
	off, err := New(u, func(Handshake) Copy { return nil }, Options{}, prometheus.NewRegistry(), log)
	require.NoError(b, err)
	on, err := New(u, func(Handshake) Copy {
		connection, err := decode.NewConnection(&nobody{}, budget)
		require.NoError(b, err)
		return decoding.Open(connection, func(err error) { b.Error(err) })
	}, Options{}, prometheus.NewRegistry(), log)
	require.NoError(b, err)
	request := []byte("\x0a\xd4\x16" + strings.Repeat("\x1a\x05hello", 2900/7) + "\x10\x05\x10\x05\x10\x05\x10\x05")[:3+2900]
	for _, way := range []struct {
		name    string
		handler http.Handler
	}{
		{"direct", coderd},
		{"reverse proxy", httputil.NewSingleHostReverseProxy(u)},
		{"decoding off", off},
		{"decoding on", on},
	} {
		b.Run(way.name, func(b *testing.B) {
			server := httptest.NewServer(way.handler)
			defer server.Close()
			s, err := codertest.Dial(ctx, server.Listener.Addr().String(), "token", codertest.DialOptions{})
			require.NoError(b, err)
			defer s.Close()
			_, err = s.Call(ctx, codertest.GetManifest, nil)
			require.NoError(b, err)
			b.ReportAllocs()
			before := cpu(b)
			for b.Loop() {
				if _, err := s.Call(ctx, codertest.UpdateStats, request); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}
