package freeport

import (
	"net"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// Nothing that listens on port 0 gets an address that was given, nor is one given
// twice.
func TestAddr(t *testing.T) {
	seen := make(map[string]bool)
	for range 200 {
		a := Addr()
		require.False(t, seen[a], "%s was given before", a)
		seen[a] = true
		any0, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer any0.Close()
		require.NotContains(t, seen, any0.Addr().String())
	}
	for a := range seen {
		lis, err := net.Listen("tcp", a)
		require.NoError(t, err)
		require.NoError(t, lis.Close())
	}
}

// A port on which somebody listens is not given.
func TestPortInUse(t *testing.T) {
	for port := lowest; port <= highest; port++ {
		given[port] = struct{}{}
	}
	defer clear(given)
	lis, err := net.Listen("tcp", addr(lowest))
	require.NoError(t, err)
	defer lis.Close()
	delete(given, lowest)
	delete(given, highest)
	require.Equal(t, highest, Port(), strconv.Itoa(lowest)+" is in use")
}
