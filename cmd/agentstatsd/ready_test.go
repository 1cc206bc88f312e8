package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/store"
)

// What the database says does not leave the process, whoever wraps it. It is in the answer once,
// and each part says what that means for it.
func TestReadyShowsNothingOfTheDatabase(t *testing.T) {
	_, refused := store.Open(t.Context(), store.Options{URL: "postgres://someone:hunter2@127.0.0.1:1/agents?sslmode=disable"}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.ErrorContains(t, refused, "someone")
	require.ErrorContains(t, refused, "127.0.0.1")
	mux := newMux(http.NotFoundHandler(), func() readiness {
		return ready([]check{
			{"fleet", func() error { return fmt.Errorf("registrations are not read since 12:00: %w", refused) }},
			{"batcher", func() error { return fmt.Errorf("metadata is not written since 12:01 (3 attempts): %w", refused) }},
			{"replica", func() error { return refused }},
			{"pushed", func() error { return errors.Join(refused, errors.New("not loaded yet"), nil) }},
			{"draining", func() error { return nil }},
		})
	})
	response := httptest.NewRecorder()
	mux.ServeHTTP(response, httptest.NewRequest(http.MethodGet, "/-/ready", http.NoBody))
	require.Equal(t, http.StatusServiceUnavailable, response.Code)
	require.JSONEq(t, `{"ready": false, "reasons": {
		"database": "the database cannot be reached: it is stopped, starting or refuses connections",
		"fleet": "registrations are not read since 12:00",
		"batcher": "metadata is not written since 12:01 (3 attempts)",
		"replica": "database",
		"pushed": "not loaded yet"
	}}`, response.Body.String())
}

// The metric and the answer come from the same checks, at each scrape.
func TestComponentReady(t *testing.T) {
	var failed error
	checks := []check{{"fleet", func() error { return nil }}, {"batcher", func() error { return failed }}}
	reg := prometheus.NewPedanticRegistry()
	require.NoError(t, registerReadiness(reg, checks))
	for _, failed = range []error{nil, errors.New("metadata is not written")} {
		families, err := reg.Gather()
		require.NoError(t, err)
		require.Len(t, families, 1)
		r := ready(checks)
		for _, m := range families[0].Metric {
			name := m.Label[0].GetValue()
			_, isReason := r.Reasons[name]
			require.Equal(t, isReason, m.GetGauge().GetValue() == 0, name)
		}
		require.Equal(t, failed == nil, r.Ready)
	}
}

func TestReady(t *testing.T) {
	require.Equal(t, readiness{Ready: true, Reasons: map[string]string{}}, ready([]check{{"fleet", func() error { return nil }}}))
}
