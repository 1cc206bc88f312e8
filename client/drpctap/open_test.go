package drpctap

import (
	"testing"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/client"
)

func TestOpen(t *testing.T) {
	tap, err := Open("", OpenOptions{})
	require.NoError(t, err)
	require.Nil(t, tap)
	require.Nil(t, tap.Coderd())
	require.Nil(t, tap.Relays())
	require.NoError(t, tap.Close())
	require.Nil(t, New(nil, Options{}).Coderd())
	require.NoError(t, New(nil, Options{}).Close())

	// Nobody listens there: nothing waits for it.
	const url = "agentstatsd://127.0.0.1:1?plaintext=true&token=0123456789abcdef"
	tap, err = Open(url, OpenOptions{})
	require.NoError(t, err)
	require.NotNil(t, tap.Coderd())
	require.NotNil(t, tap.Relays())
	require.NoError(t, tap.Close())
	require.NoError(t, tap.Close(), "again")
	_, err = tap.Relays().Connect(uuid.UUID{1}, "")
	require.ErrorContains(t, err, "the relays are closed")

	_, err = Open("https://stats", OpenOptions{})
	require.Error(t, err)
	_, err = Open(url, OpenOptions{Relays: client.RelaysOptions{Idle: -1}})
	require.ErrorContains(t, err, "relays options: idle")
	_, err = Open(url, OpenOptions{Gatherer: prometheus.NewRegistry(), Push: client.PushOptions{Interval: 1}})
	require.ErrorContains(t, err, "push options: ")
}
