package store

import (
	"net"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/coder/agentstatsd/internal/postgrestest"
)

// A query to a host that is gone ends in half a minute, whoever asked. Probes of the
// connection do not find that out while something is unconfirmed.
func TestPostgresSilence(t *testing.T) {
	server := postgrestest.Shared(t)
	config, err := postgresConfig(Options{URL: server.URL()})
	require.NoError(t, err)
	conn, err := config.DialFunc(t.Context(), "tcp", server.Address())
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	tcp, is := conn.(syscall.Conn)
	require.True(t, is)
	raw, err := tcp.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		require.NoError(t, err)
		require.EqualValues(t, silence.Milliseconds(), got)
	}))

	// A socket of the file system has no such option.
	path := t.TempDir() + "/s"
	lis, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer func() { require.NoError(t, lis.Close()) }()
	local, err := config.DialFunc(t.Context(), "unix", path)
	require.NoError(t, err)
	require.NoError(t, local.Close())
}
