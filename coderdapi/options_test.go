package coderdapi_test

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/grpcserver"
)

func TestCoderdOptions(t *testing.T) {
	server, err := grpcserver.New(nil, grpcserver.Options{}, prometheus.NewRegistry(), nil)
	require.NoError(t, err)
	for want, opts := range map[string]coderdapi.Options{
		"coderdapi options: max watches bytes: want at least 25165824, six times the max message bytes and once the max watch bytes, got 1": {MaxWatchesBytes: 1},
		"coderdapi options: sync timeout: want at least 0, got -1":                                                                          {SyncTimeout: -1},
	} {
		_, err := coderdapi.New(server, coderdapi.Components{}, opts, prometheus.NewRegistry(), nil)
		require.EqualError(t, err, want)
	}
}
