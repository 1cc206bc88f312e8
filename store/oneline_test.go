package store

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// What the driver says of a server that cannot be reached is one line of the log, without
// what it says twice.
func TestErrorIsOneLine(t *testing.T) {
	err := &Error{doing: "open", reason: reasonDown, err: errors.New("failed to connect to `user=u database=x`:\n" +
		"\t127.0.0.1:1 (a): dial error: refused\n\t127.0.0.1:1 (a): dial error: refused\n\t127.0.0.1:2 (b): dial error: refused")}
	require.EqualError(t, err, "open: failed to connect to `user=u database=x`: 127.0.0.1:1 (a): dial error: refused; 127.0.0.1:2 (b): dial error: refused")
	require.EqualError(t, &Error{doing: "read", err: errors.New("disk I/O error")}, "read: disk I/O error")
}
