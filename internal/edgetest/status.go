package edgetest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// RequireCode checks the status of a call.
func RequireCode(t testing.TB, err error, code codes.Code, text string) {
	t.Helper()
	require.Equal(t, code, status.Code(err), "%v", err)
	require.Equal(t, text, status.Convert(err).Message())
}

// RequireCodeContains checks the code of a call and a part of its text.
func RequireCodeContains(t testing.TB, err error, code codes.Code, text string) {
	t.Helper()
	require.Equal(t, code, status.Code(err), "%v", err)
	require.Contains(t, err.Error(), text)
}

// RetryDelay returns after what time the status asks to try again.
func RetryDelay(t testing.TB, err error) time.Duration {
	t.Helper()
	require.NotEmpty(t, status.Convert(err).Details())
	retry, ok := status.Convert(err).Details()[0].(*errdetails.RetryInfo)
	require.True(t, ok)
	return retry.GetRetryDelay().AsDuration()
}
