package operator

import (
	"testing"

	"github.com/stretchr/testify/require"

	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestConfig(t *testing.T) {
	option := func(flag, value, source string, restart bool) *pb.Option {
		return &pb.Option{Flag: flag, Value: value, DefaultValue: "5", Source: source, NeedsRestart: restart}
	}
	replica := func(name string, options ...*pb.Option) *fake {
		return startFake(t, "127.0.0.1", &fake{
			statuses: []*pb.ReplicaStatus{replicaStatus(name)}, config: &pb.GetConfigResponse{Hash: "1" + name, Options: options},
		}, nil)
	}
	a := replica("a", option("max-series", "7", "file", false), option("grpc-address", "a:1", "flag", true), option("log-level", "5", "default", false))
	b := replica("b", option("max-series", "8", "env", false), option("grpc-address", "a:1", "flag", true), option("log-level", "5", "default", false))
	r := run(t, "config", "--address", addressesOf(a, b))
	require.NoError(t, r.err)
	require.Equal(t, `OPTION          VALUE  DEFAULT  SET BY  CHANGE BY  REPLICAS
--max-series    7      5        file    reload     a
--max-series    8      5        env     reload     b
--grpc-address  a:1    5        flag    restart    all
`, r.stdout)
	r = run(t, "config", "--all", "--address", addressesOf(a, b))
	require.NoError(t, r.err)
	require.Contains(t, r.stdout, "--log-level     5      5        default  reload     all\n")
	r = run(t, "config", "--json", "--address", addressesOf(a, b))
	require.NoError(t, r.err)
	require.Contains(t, r.stdout, `"hash": "1b"`)
	require.NotContains(t, r.stdout, "log-level")

	r = run(t, "config", "--address", replica("c", option("log-level", "5", "default", false)).address)
	require.NoError(t, r.err)
	require.Equal(t, "all options are at their defaults\n", r.stdout)
}
