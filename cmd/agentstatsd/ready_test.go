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

	"github.com/coder/agentstatsd/internal/readiness"
	"github.com/coder/agentstatsd/store"
)

// What the database says does not leave the process, whoever wraps it. It is in the answer once,
// and each part says what that means for it.
func TestReadyShowsNothingOfTheDatabase(t *testing.T) {
	_, refused := store.Open(t.Context(), store.Options{URL: "postgres://someone:hunter2@127.0.0.1:1/agents?sslmode=disable"}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.ErrorContains(t, refused, "someone")
	require.ErrorContains(t, refused, "127.0.0.1")
	mux := newMux(http.NotFoundHandler(), func() readiness.Answer {
		return readiness.Of([]readiness.Check{
			{Name: "fleet", Err: func() error { return fmt.Errorf("registrations are not read since 12:00: %w", refused) }},
			{Name: "batcher", Err: func() error { return fmt.Errorf("metadata is not written since 12:01 (3 attempts): %w", refused) }},
			{Name: "replica", Err: func() error { return refused }},
			{Name: "pushed", Err: func() error { return errors.Join(refused, errors.New("not loaded yet"), nil) }},
			{Name: "draining", Err: func() error { return nil }},
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
