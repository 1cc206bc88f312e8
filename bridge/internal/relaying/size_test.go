package relaying

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/bridge/internal/decode"
)

// A request of few bytes that would take much memory is not decoded.
func TestFits(t *testing.T) {
	field := func(tag byte, content []byte) []byte {
		n := len(content)
		return append([]byte{tag, byte(n) | 0x80, byte(n>>7) | 0x80, byte(n >> 14)}, content...)
	}
	const metrics, stats, metadata = 12<<3 | 2, 1<<3 | 2, 2<<3 | 2
	require.NoError(t, fits(decode.CallStats, nil))
	require.NoError(t, fits(decode.CallStats, field(stats, bytes.Repeat([]byte{metrics, 0}, 1000))))
	require.NoError(t, fits(decode.CallStats, []byte{0xff}), "it is refused when it is decoded")
	require.NoError(t, fits(decode.CallStats, field(stats, []byte{0xff})), "likewise")
	require.NoError(t, fits(decode.CallStats, field(metadata, bytes.Repeat([]byte{metrics, 0}, 200_000))), "another field")
	require.ErrorContains(t, fits(decode.CallStats, field(stats, bytes.Repeat([]byte{metrics, 0}, 200_000))), "want at most 8388608 bytes")
	require.ErrorContains(t, fits(decode.CallMetadata, bytes.Repeat([]byte{metadata, 0}, 200_000)), "too many elements")
}
