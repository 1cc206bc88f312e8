package clienttest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/secrets"
)

// A client takes the token of a file that the service takes as its first one, so that both
// may be given the same file while the token is changed.
func TestTokenFileIsTheServices(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	line := rapid.OneOf(
		rapid.Just(""), rapid.Just(" \t"), rapid.Just("# old: 0123456789abcdefgh"), rapid.Just("  #"),
		rapid.StringMatching(`[ \t]{0,2}[a-z0-9][a-z._-]{0,3}:[ \t]{1,2}[!-~]{16,20}[ \t]{0,2}`),
		rapid.StringMatching(`[a-z0-9:+/=]{16,20}`),
	)
	taken := 0
	rapid.Check(t, func(t *rapid.T) {
		lines := rapid.SliceOfN(line, 1, 4).Draw(t, "lines")
		end := rapid.SampledFrom([]string{"\n", "\r\n"}).Draw(t, "end")
		require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines, end)+end), 0o600))
		want, _, err := secrets.ReadToken(path)
		if err != nil {
			return // the service takes no such file
		}
		taken++
		got, err := client.TokenFile(path, true).GetRequestMetadata(t.Context())
		require.NoError(t, err)
		require.Equal(t, "Bearer "+want, got["authorization"])
	})
	require.NotZero(t, taken)
}
