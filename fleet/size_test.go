package fleet

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/kept"
	"github.com/coder/agentstatsd/internal/bubble"
)

// bytesOf is what registrations come to, counted anew.
func bytesOf(r *registry) int64 {
	change := kept.NewTexts().Change()
	for e := range r.agents.All() {
		change.AddRegistration(e.registration())
	}
	for w := range r.workspaces.All() {
		value := w.reg.Load().Value()
		change.AddWorkspace(&value)
	}
	return change.Bytes() + int64(r.agents.Len())*agentBytes + int64(r.workspaces.Len())*workspaceBytes
}

// large is registration n with about so many bytes of metadata keys.
func large(n, size int) agent.Registration {
	r := registration(n, n, 1)
	for i := range size / 1000 {
		r.MetadataKeys = append(r.MetadataKeys, fmt.Sprintf("%03d.%03d%s", n, i, strings.Repeat("k", 993)))
	}
	return r
}

// Registrations are bounded in bytes, too: what would make them larger than the
// limit is refused, what makes them smaller is not.
func TestRegistrationBytes(t *testing.T) {
	const limit = 100_000
	p := loaded(t, Options{MaxBytes: limit}, large(1, 40_000), large(2, 40_000))
	refused := func(set Set, sync bool) {
		t.Helper()
		before := p.registry.Use().Bytes()
		var err error
		if sync {
			s, began := p.BeginSync()
			require.NoError(t, began)
			_, err = s.Apply(t.Context(), set, true)
		} else {
			_, err = p.Register(t.Context(), set)
		}
		require.ErrorIs(t, err, ErrTooLarge)
		require.Regexp(t, `^too large registrations: want at most 100000 bytes in memory of all \(--max-registrations-bytes\), got 1[0-9]{5}$`, err.Error())
		require.Equal(t, before, p.registry.Use().Bytes())
		requireConsistent(t, p)
	}
	refused(Set{Agents: []agent.Registration{large(3, 30_000)}}, false)
	refused(Set{Agents: []agent.Registration{large(2, 70_000)}}, false)
	refused(Set{Agents: []agent.Registration{large(2, 70_000), large(3, 70_000)}}, true)
	require.Equal(t, []string{"max_bytes 3"}, metric(t, p, "agentstatsd_registration_changes_refused_total"))

	// A workspace has bytes, too.
	var many Set
	for n := range 3 {
		w := registration(10+n, 10+n, 1).Workspace
		w.Name, w.OwnerUsername, w.Organization = strings.Repeat("w", 5000), strings.Repeat("o", 5000), ""
		many.Workspaces = append(many.Workspaces, w)
	}
	refused(many, false)

	// In the place of another there is room for one.
	_, err := p.Register(t.Context(), Set{Agents: []agent.Registration{large(2, 20_000), large(3, 30_000)}})
	require.NoError(t, err)
	requireConsistent(t, p)
	_, err = p.Deregister(t.Context(), []agent.ID{nid(1)}, []agent.ID{nid(1003)})
	require.NoError(t, err)
	requireConsistent(t, p)
	require.Equal(t, []string{fmt.Sprint(float64(bytesOf(&p.registry)))}, metric(t, p, "agentstatsd_registrations_bytes"))

	// With a lower limit what is there stays, and may shrink.
	require.NoError(t, p.Reconfigure(Options{MaxBytes: 10_000}))
	_, err = p.Register(t.Context(), Set{Agents: []agent.Registration{large(2, 19_000)}})
	require.NoError(t, err)
	_, err = p.Register(t.Context(), Set{Agents: []agent.Registration{large(2, 20_000)}})
	require.ErrorIs(t, err, ErrTooLarge)
}

// What another replica with higher limits took in is served here, too, and counted.
func TestRegistrationsBeyondTheLimits(t *testing.T) {
	for _, c := range []struct {
		limit string
		low   Options
	}{{"max_bytes", Options{MaxBytes: 50_000}}, {"max_agents", Options{MaxAgents: 2}}} {
		bubble.Test(t, func(t *testing.T) {
			cluster, replicas := startReplicasWith(t, 1, Options{})
			high := replicas[0]
			low := startReplica(t, cluster, high.store, 1, c.low)
			var log bytes.Buffer
			low.log = slog.New(slog.NewTextHandler(&log, nil))
			awaitReplicas()
			for n := range 4 {
				_, err := high.Register(t.Context(), Set{Agents: []agent.Registration{large(n+1, 20_000)}})
				require.NoError(t, err)
				awaitReplicas()
			}
			require.Equal(t, ids(1, 2, 3, 4), registered(low.Fleet), "all are served")
			connectTo(t, low, 4, hello(4, 1)).Close(EndGoodbye)
			require.Equal(t, []string{c.limit + " 2"}, metric(t, low, "agentstatsd_registrations_beyond_limit_total"))
			require.Empty(t, metric(t, high, "agentstatsd_registrations_beyond_limit_total"))
			_, err := low.Register(t.Context(), Set{Agents: []agent.Registration{large(5, 1000)}})
			require.Error(t, err, "it takes in no more itself")

			_, err = high.Deregister(t.Context(), []agent.ID{nid(1), nid(2), nid(3)}, []agent.ID{nid(1001), nid(1002), nid(1003)})
			require.NoError(t, err)
			awaitReplicas()
			require.Equal(t, 1, strings.Count(log.String(), "more registrations than this replica would take in"), log.String())
			require.Equal(t, 1, strings.Count(log.String(), "within the limits of this replica again"), log.String())

			started := startReplica(t, cluster, high.store, 2, Options{MaxAgents: 1, MaxBytes: 1000})
			awaitReplicas()
			require.Equal(t, ids(4), registered(started.Fleet))
			require.Equal(t, []string{"max_bytes 1"}, metric(t, started, "agentstatsd_registrations_beyond_limit_total"))
		})
	}
}
