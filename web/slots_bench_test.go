package web

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"
)

// BenchmarkServer is what this package adds to a response of 4 MB, over loopback.
func BenchmarkServer(b *testing.B) {
	run := func(b *testing.B, serve func(lis net.Listener) error, stop func()) {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(b, err)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = serve(lis)
		}()
		defer func() {
			stop()
			<-done
		}()
		client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
		defer client.CloseIdleConnections()
		b.SetBytes(largeBytes)
		b.ReportAllocs()
		for b.Loop() {
			resp, err := client.Get("http://" + lis.Addr().String())
			require.NoError(b, err)
			_, err = io.Copy(io.Discard, resp.Body)
			require.NoError(b, err)
			resp.Body.Close()
		}
	}
	b.Run("net/http", func(b *testing.B) {
		s := &http.Server{Handler: large()}
		run(b, s.Serve, func() { _ = s.Close() })
	})
	b.Run("web", func(b *testing.B) {
		scrapes, err := NewSlots(large(), "scrapes", 16, rate.Inf, prometheus.NewRegistry())
		require.NoError(b, err)
		s, err := NewServer(scrapes, Options{}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		require.NoError(b, err)
		ctx, cancel := context.WithCancel(b.Context())
		run(b, func(lis net.Listener) error { return s.Serve(ctx, lis) }, cancel)
	})
}
