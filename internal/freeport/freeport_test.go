package freeport

import (
	"net"
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
	p := newPorts(t)
	p.next()
	lis, err := listen(p.unused[0])
	require.NoError(t, err)
	defer lis.Close()
	want := p.unused[1]
	require.Equal(t, want, p.next())
}

// Processes give no port that another one has given, also while nobody listens there.
func TestPortsOfProcesses(t *testing.T) {
	seen := make(map[int]bool)
	for range 40 {
		p := newPorts(t)
		port := p.next()
		require.False(t, seen[port], "another one has given %d", port)
		seen[port] = true
	}
}

// newPorts is what a process has. It ends with the test.
func newPorts(t *testing.T) *ports {
	p := new(ports)
	t.Cleanup(func() {
		for _, lis := range p.blocks {
			_ = lis.Close()
		}
	})
	return p
}
