package simulate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/internal/codertest"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// coderOf serves a coderd with so many agents, and returns options for them.
func coderOf(t *testing.T, agents int, rpc *codertest.RPC) CoderOptions {
	interval, err := proto.Marshal(durationpb.New(20 * time.Millisecond))
	require.NoError(t, err)
	rpc.Accept = func(c codertest.Call) []byte {
		if c.Name != codertest.UpdateStats {
			return nil
		}
		return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), interval)
	}
	o := CoderOptions{MetadataInterval: 20 * time.Millisecond, Ramp: -1, Steady: true}
	for n := range agents {
		id := uuid.New()
		o.Tokens = append(o.Tokens, fmt.Sprintf("token-%d", n))
		rpc.Add(codertest.Agent{ID: id, Token: o.Tokens[n], Manifest: codertest.Manifest{
			AgentID: id, Apps: []codertest.ManifestApp{{ID: uuid.New(), Slug: "code"}}, MetadataKeys: []string{"cpu", "ram"},
		}.Encode()})
	}
	coderd := httptest.NewServer(rpc)
	t.Cleanup(coderd.Close)
	u, err := url.Parse(coderd.URL)
	require.NoError(t, err)
	o.URLs = []*url.URL{u}
	return o
}

// runCoder runs agents until coderd has accepted what enough says, and returns their summary.
func runCoder(t *testing.T, o CoderOptions, enough func() bool) Summary {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running sync.WaitGroup
	var summary Summary
	var err error
	running.Go(func() { summary, err = RunCoder(ctx, o, slog.New(slog.DiscardHandler)) })
	require.Eventually(t, enough, 30*time.Second, 5*time.Millisecond)
	cancel()
	running.Wait()
	require.NoError(t, err)
	return summary
}

// accepted counts the calls of a name, by agent.
func accepted(rpc *codertest.RPC, name string) map[uuid.UUID]int {
	n := make(map[uuid.UUID]int)
	for _, c := range rpc.Accepted() {
		if c.Name == name {
			n[c.Agent]++
		}
	}
	return n
}

// Agents make the calls that Coder's agents do, and end as they do.
func TestRunCoder(t *testing.T) {
	rpc := new(codertest.RPC)
	o := coderOf(t, 3, rpc)
	summary := runCoder(t, o, func() bool {
		return len(accepted(rpc, codertest.UpdateLifecycle)) == 3 && len(accepted(rpc, codertest.BatchUpdateMetadata)) == 3 &&
			len(accepted(rpc, codertest.Coordinate)) == 3
	})
	require.True(t, summary.Complete(), "%+v", summary)
	require.Equal(t, 3, summary.Agents)
	require.Zero(t, summary.Reconnects)
	require.Equal(t, summary.ReportsSent*defaultMetricsPerAgent, summary.SamplesSent)
	reports, metadata := 0, 0
	states := make(map[uuid.UUID][]agentstatsv1.Lifecycle_State)
	first := make(map[uuid.UUID]string)
	for _, c := range rpc.Accepted() {
		if first[c.Agent] == "" {
			first[c.Agent] = c.Name
		}
		switch c.Name {
		case codertest.UpdateStats:
			if len(c.Request) > 0 { // the first asks for the interval
				reports++
			}
		case codertest.BatchUpdateMetadata:
			metadata++
		case codertest.UpdateLifecycle:
			_, _, tag := protowire.ConsumeTag(c.Request)
			encoded, _ := protowire.ConsumeBytes(c.Request[tag:])
			l := &agentstatsv1.Lifecycle{}
			require.NoError(t, proto.Unmarshal(encoded, l))
			require.WithinDuration(t, time.Now(), l.GetChangedAt().AsTime(), time.Minute)
			states[c.Agent] = append(states[c.Agent], l.GetState())
		}
	}
	require.EqualValues(t, summary.ReportsSent, reports)
	require.EqualValues(t, summary.MetadataSent, 2*metadata)
	require.Len(t, states, 3)
	for agent, all := range states {
		require.Equal(t, codertest.GetManifest, first[agent])
		require.Equal(t, agentstatsv1.Lifecycle_STATE_STARTING, all[0])
		require.Equal(t, []agentstatsv1.Lifecycle_State{agentstatsv1.Lifecycle_STATE_SHUTTING_DOWN, agentstatsv1.Lifecycle_STATE_OFF}, all[len(all)-2:])
	}
	nodes := accepted(rpc, codertest.Coordinate)
	require.Len(t, nodes, 3)
}

// Agents that connect anew lose nothing, and go on where they were.
func TestRunCoderChurns(t *testing.T) {
	rpc := new(codertest.RPC)
	o := coderOf(t, 2, rpc)
	o.Churn, o.Keep = 100*time.Millisecond, true
	summary := runCoder(t, o, func() bool {
		n := 0
		for _, manifests := range accepted(rpc, codertest.GetManifest) {
			n += manifests
		}
		return n > 10
	})
	require.True(t, summary.Complete(), "%+v", summary)
	require.Greater(t, summary.Reconnects, int64(5))
	for _, n := range accepted(rpc, codertest.UpdateLifecycle) {
		require.LessOrEqual(t, n, 2, "no state is repeated, and none is said at the end")
	}
}

// What coderd refuses is counted.
func TestRunCoderIsRefused(t *testing.T) {
	rpc := &codertest.RPC{Refuse: func(c codertest.Call) error {
		if c.Name == codertest.BatchUpdateMetadata {
			return errors.New("no")
		}
		return nil
	}}
	o := coderOf(t, 1, rpc)
	summary := runCoder(t, o, func() bool {
		for _, n := range accepted(rpc, codertest.UpdateStats) {
			return n > 10
		}
		return false
	})
	require.False(t, summary.Complete())
	require.Positive(t, summary.Refused)
	require.Zero(t, summary.MetadataAcked)
	require.Equal(t, summary.ReportsSent, summary.ReportsAcked)
}

// Agents that coderd does not know are errors.
func TestRunCoderWithUnknownTokens(t *testing.T) {
	rpc := new(codertest.RPC)
	o := coderOf(t, 1, rpc)
	o.Tokens = append(o.Tokens, "unknown")
	summary := runCoder(t, o, func() bool {
		return len(accepted(rpc, codertest.UpdateLifecycle)) == 1 && len(rpc.Headers()) > 2
	})
	require.False(t, summary.Complete())
	require.EqualValues(t, 1, summary.Errors)
}

func TestCoderOptions(t *testing.T) {
	coder := &url.URL{Scheme: "https", Host: "coder.example.com"}
	for want, o := range map[string]CoderOptions{
		"URLs: want at least 1":                        {Tokens: []string{"token"}},
		"tokens: want at least 1":                      {URLs: []*url.URL{coder}},
		"URLs: want such as https://coder.example.com": {Tokens: []string{"token"}, URLs: []*url.URL{{Scheme: "ftp", Host: "coder"}}},
		"churn: want at least 0, got -1ns":             {Tokens: []string{"token"}, URLs: []*url.URL{coder}, Churn: -1},
	} {
		_, err := RunCoder(t.Context(), o, slog.New(slog.DiscardHandler))
		require.EqualError(t, err, "simulate: "+want)
	}
}
