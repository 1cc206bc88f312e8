package agentapi

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// settle lets messages and parcels come through.
func settle() {
	time.Sleep(time.Second)
	synctest.Wait()
}

// readAll processes and acks what the stream is told.
func (t *statsTurn) readAll(c told) (last processed) {
	for resp := t.next(); resp != nil; resp = t.next() {
		c.addAll(resp)
		last = processed{resp.GetEpoch(), resp.GetSequence()}
		if _, err := t.watch.ack(resp.GetSequence()); err != nil {
			panic(err)
		}
	}
	return last
}

// TestRelayWaitsForTheLastHome shows that a watcher is told nothing while the
// replica that it came from does not know what it has processed.
func TestRelayWaitsForTheLastHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(t)
		a, b, c := newReplica(t, bus, 1), newReplica(t, bus, 2), newReplica(t, bus, 3)
		turn := a.enter(t, "insights", processed{})
		settle()
		a.tell(1, 1)
		resp := turn.next()
		got := newTold()
		got.addAll(resp)
		bus.Set(BusSilent)
		a.names.leave("insights", turn) // the ack is lost

		turn = b.enter(t, "insights", processed{resp.GetEpoch(), 1})
		b.tell(1, 2)
		time.Sleep(time.Minute)
		require.Nil(t, turn.next())
		b.names.leave("insights", turn)
		turn = c.enter(t, "insights", processed{resp.GetEpoch(), 1})
		c.tell(1, 4)
		time.Sleep(time.Minute)
		bus.Set(BusWorks)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		turn.readAll(got)
		require.Equal(t, map[byte]int64{1: 7}, got.bytes)
		require.Equal(t, map[byte]int64{1: 3}, got.reports)
		require.Zero(t, testutil.ToFloat64(c.metrics.unsettled))
		require.Equal(t, 2.0, testutil.ToFloat64(c.metrics.relayReplicas))
		c.names.leave("insights", turn)
	})
}

// TestRelayOfALostHome shows what happens if that replica is no more.
func TestRelayOfALostHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReplica(t, newBus(t), 1)
		settle()
		r.tell(1, 1)
		// A watch that goes on has what was reported since the replica began; one
		// that begins does not.
		turn, fresh := r.enter(t, "insights", processed{Epoch: 7, Sequence: 3}), r.enter(t, "fresh", processed{})
		require.Nil(t, fresh.next())
		r.tell(1, 2)
		require.EqualValues(t, 1, fresh.next().GetAgents()[0].GetReports())
		r.names.leave("fresh", fresh)
		began := time.Now()
		resp := turn.next()
		for ; resp == nil; resp = turn.next() {
			settle()
		}
		require.EqualValues(t, 2, resp.GetAgents()[0].GetReports())
		// Whether the round of this second came before the watch is not known.
		require.GreaterOrEqual(t, time.Since(began), 3*time.Second)
		require.LessOrEqual(t, time.Since(began), 5*time.Second)
		require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.unsettled))
		r.names.leave("insights", turn)
	})
}

// TestClaims shows how much of what was processed elsewhere is remembered.
func TestClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReplica(t, newBus(t), 1)
		settle()
		turn := r.enter(t, "insights", processed{Epoch: 1})
		require.NotNil(t, r.names.hear(claim{Name: "insights", home: agent.ID{2}, Stamp: 1, Processed: []processed{{Epoch: turn.watch.epoch}}}))
		require.Nil(t, r.names.hear(claim{Name: "insights", home: agent.ID{2}, Stamp: 1, Processed: []processed{{Epoch: 8}}}))
		for epoch := uint64(2); epoch <= 6; epoch++ {
			turn = r.enter(t, "insights", processed{Epoch: epoch})
		}
		claims, _, urgent := r.names.claims()
		require.True(t, urgent)
		require.Equal(t, []processed{{Epoch: 3}, {Epoch: 4}, {Epoch: 5}, {Epoch: 6}}, claims[0].Processed)
		for range maxAsked {
			r.names.sent(claims[0], 100) // one round, that comes again and again
		}
		r.names.settle(settlement{"insights", 4})
		r.names.settle(settlement{"other", 6})
		require.Nil(t, turn.next())
		require.True(t, turn.unsettled())
		r.names.settle(settlement{"insights", 6})
		require.False(t, turn.unsettled())
		claims, _, urgent = r.names.claims()
		require.False(t, urgent)
		require.Equal(t, []processed{{Epoch: 3}, {Epoch: 5}}, claims[0].Processed)

		// The next home tells the same on, but what it knows of itself.
		next := claims[0]
		next.home, next.Stamp = agent.ID{2}, next.Stamp+int64(time.Hour)
		next.Processed = []processed{{Epoch: 3}, {Epoch: turn.watch.epoch, Sequence: 0}}
		require.NotNil(t, r.names.hear(next))
		turn = r.enter(t, "insights", processed{Epoch: 9})
		claims, _, _ = r.names.claims()
		require.Equal(t, []processed{{Epoch: 3}, {Epoch: 9}}, claims[0].Processed)
		require.Equal(t, next.Stamp+1, claims[0].Stamp)
		r.names.leave("insights", turn)
	})
}

// TestWatchGivenUp shows that a stream whose watch has gone elsewhere takes
// nothing any more.
func TestWatchGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReplica(t, newBus(t), 1)
		settle()
		turn := r.enter(t, "insights", processed{})
		r.tell(1, 1)
		first := turn.watch.next(true)
		require.NotNil(t, first)
		r.tell(1, 2)
		next := claim{Name: "insights", home: agent.ID{2}, Stamp: time.Now().UnixNano() + 1}
		require.Nil(t, r.names.hear(next))
		require.Nil(t, turn.watch.next(true))
		require.Equal(t, int64(1), first.GetAgents()[0].GetStats().GetRxBytes(), "it may still be sent")
		require.EqualValues(t, 2, r.names.waiting())
		<-turn.taken
		r.names.leave("insights", turn)
		require.Zero(t, testutil.ToFloat64(r.metrics.parked))
		// An older claim changes nothing.
		turn = r.enter(t, "insights", processed{})
		require.Nil(t, r.names.hear(next))
		again := turn.watch.next(true)
		require.EqualValues(t, 2, again.GetSequence())
		require.Equal(t, int64(3), again.GetAgents()[0].GetStats().GetRxBytes())
		require.EqualValues(t, 2, again.GetAgents()[0].GetReports())
		require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.moved))
		r.names.leave("insights", turn)
	})
}

// TestRelayPartsWithReplicas shows that a parcel goes elsewhere only if the
// replica that it was sent to says that it did not take it.
func TestRelayPartsWithReplicas(t *testing.T) {
	for took, want := range map[int64]int64{0: 1, 1: 0} {
		synctest.Test(t, func(t *testing.T) {
			bus := newBus(t)
			r := newReplica(t, bus, 1)
			settle()
			hear := func(a announcement) {
				r.hearAll(&relayMessage{From: agent.ID{2}, Announce: &a})
				r.rouse()
				synctest.Wait() // what is told now is sent together
			}
			claims := []claim{{Name: "insights", Stamp: 1, Since: time.Now().UnixNano()}}
			hear(announcement{Round: 2, interest: interest{Unnamed: 5}, Claims: claims})
			r.tell(1, 1)
			settle()
			require.EqualValues(t, 2, r.remotes[agent.ID{2}].way.reports())
			require.Zero(t, r.names.waiting())
			// A round of before, that comes late, changes nothing.
			hear(announcement{Round: 1, Claims: claims})
			require.NotNil(t, r.remotes[agent.ID{2}].unnamed)

			way := r.remotes[agent.ID{2}].way.parcelID
			r.hearOwn(&relayMessage{From: agent.ID{2}, Gone: &parcelID{way.Epoch, took}})
			require.Equal(t, want, r.names.waiting())
			require.Nil(t, r.remotes[agent.ID{2}].way)
			// What comes late from it wakes nothing.
			hear(announcement{Round: 3, interest: interest{Unnamed: 5}, Claims: claims})
			require.Nil(t, r.remotes[agent.ID{2}].unnamed)
			require.False(t, r.remotes[agent.ID{2}].owes())
			sent := bus.Sent()
			settle()
			require.Equal(t, sent, bus.Sent())
			time.Sleep(2*testRetention + time.Minute)
			synctest.Wait()
			require.Empty(t, r.remotes)
			require.True(t, r.feed.idle())
			require.Equal(t, float64(want), testutil.ToFloat64(r.metrics.relayDropped.WithLabelValues(droppedSilent)))
		})
	}
}

// stopLater begins to stop the replica. Nobody else may meanwhile: waiting for
// the other one's call would stop the time.
func (r *replica) stopLater() <-chan struct{} {
	stopped := make(chan struct{})
	go func() {
		r.stop()
		close(stopped)
	}()
	return stopped
}

// TestRelayHandsOver shows that a replica that stops hands on what its agents
// reported to the end, and waits for a watcher to come back elsewhere.
func TestRelayHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(t)
		a, b := newReplica(t, bus, 1), newReplica(t, bus, 2)
		turn := a.enter(t, "insights", processed{})
		settle()
		b.tell(1, 1)
		settle()
		a.tell(2, 2)
		a.names.leave("insights", turn)
		began := time.Now()
		stopped := a.stopLater()
		time.Sleep(1500 * time.Millisecond)
		turn = b.enter(t, "insights", processed{})
		time.Sleep(100 * time.Millisecond)
		<-stopped
		require.Equal(t, 1600*time.Millisecond, time.Since(began))
		got := newTold()
		turn.readAll(got)
		require.Equal(t, map[byte]int64{1: 1, 2: 2}, got.bytes)

		// What is lost meanwhile is sent again.
		settle()
		c := newReplica(t, bus, 3)
		settle()
		c.tell(3, 4)
		bus.Set(BusSilent)
		began = time.Now()
		stopped = c.stopLater()
		time.Sleep(handOverTimeout - 2*hurryInterval)
		bus.Set(BusWorks)
		<-stopped
		require.Less(t, time.Since(began), handOverTimeout)
		turn.readAll(got)
		require.Equal(t, map[byte]int64{1: 1, 2: 2, 3: 4}, got.bytes)

		// Nobody comes back.
		b.tell(1, 1)
		b.names.leave("insights", turn)
		began = time.Now()
		b.stop()
		require.Equal(t, handOverTimeout, time.Since(began))
	})
}

// TestRelayEnds shows when a watch ends everywhere, and what it costs when
// nobody watches.
func TestRelayEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(t)
		a, b := newReplica(t, bus, 1), newReplica(t, bus, 2)
		require.False(t, a.feed.idle(), "there may be watches that it did not hear of")
		time.Sleep(earlyTime + announceInterval)
		synctest.Wait()
		require.True(t, a.feed.idle())
		sent := bus.Sent()
		time.Sleep(time.Hour)
		require.Equal(t, sent, bus.Sent())

		// The end of a name is told.
		turn := a.enter(t, "insights", processed{})
		settle()
		require.False(t, b.feed.idle())
		a.names.leave("insights", turn)
		time.Sleep(testRetention - 2*time.Second)
		bus.Set(BusFails)
		b.tell(1, 1)
		time.Sleep(3 * time.Second)
		bus.Set(BusWorks)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.True(t, a.feed.idle())
		require.False(t, b.feed.idle(), "it did not hear of it")
		time.Sleep(testRetention + announceInterval)
		synctest.Wait()
		require.True(t, b.feed.idle())
		require.Equal(t, 1.0, testutil.ToFloat64(a.metrics.relayDropped.WithLabelValues(droppedUnknown)))
		require.NotZero(t, testutil.ToFloat64(a.metrics.relayErrors.WithLabelValues(relayPublish)))

		turn = a.enter(t, "insights", processed{})
		settle()
		a.names.leave("insights", turn)
		time.Sleep(testRetention)
		settle()
		require.True(t, b.feed.idle())

		// The end of an audience is told, and what was gathered for it is not told
		// to the next one.
		unnamed := a.enter(t, "", processed{})
		activity := newActivityWatch(time.Minute, 10, a.metrics)
		endActivity := a.feed.watchActivity(activity)
		settle()
		require.False(t, b.feed.idle())
		bus.Set(BusSilent)
		b.tell(1, 1)
		settle()
		a.names.leave("", unnamed)
		endActivity()
		settle()
		require.False(t, b.feed.idle())
		unnamed = a.enter(t, "", processed{})
		endActivity = a.feed.watchActivity(activity)
		bus.Set(BusWorks)
		settle()
		settle()
		b.tell(1, 2)
		settle()
		got := newTold()
		unnamed.readAll(got)
		require.Equal(t, map[byte]int64{1: 2}, got.bytes)
		used, _ := activity.take(time.Now())
		require.Len(t, used, 1)
		require.Equal(t, time.Second, time.Since(used[0].GetLastUsedAt().AsTime()))
		a.names.leave("", unnamed)
		endActivity()
		settle()
		require.True(t, b.feed.idle())
	})
}

// TestRelaySendsWhatWasMissed shows that who learns that messages were lost does
// not wait.
func TestRelaySendsWhatWasMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(t)
		a, b := newReplica(t, bus, 1), newReplica(t, bus, 2)
		turn := a.enter(t, "insights", processed{})
		settle()
		bus.Set(BusSilent)
		b.tell(1, 1)
		late := a.enter(t, "late", processed{})
		time.Sleep(watchPause + urgentInterval)
		synctest.Wait()
		require.Nil(t, turn.next())
		bus.Set(BusWorks)
		b.receive(nil, nil)
		synctest.Wait()
		require.Len(t, turn.next().GetAgents(), 1)
		require.Contains(t, b.names.byName, "late", "it has asked")
		a.names.leave("insights", turn)
		a.names.leave("late", late)
	})
}

// TestRelayLimits shows what more replicas and names cost than there may be.
func TestRelayLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReplica(t, newBus(t), 1)
		settle()
		for n := range maxRemotes + 1 {
			r.hearAll(&relayMessage{From: agent.ID{2, byte(n)}, Announce: &announcement{Round: 1, interest: interest{Unnamed: time.Now().UnixNano()}}})
			time.Sleep(time.Nanosecond)
		}
		require.Len(t, r.remotes, maxRemotes)
		require.NotContains(t, r.remotes, agent.ID{2, 0})
		require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.relayRefused.WithLabelValues(refusedReplica)))
		require.EqualValues(t, maxRemotes+1, r.feed.watched.Load(), "with the early one")
		for n := range 5 {
			r.names.hear(claim{Name: fmt.Sprint(n), home: agent.ID{2, 1}, Stamp: 1, Since: time.Now().UnixNano()})
		}
		require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.relayRefused.WithLabelValues(refusedName)))
		require.Len(t, r.names.byName, 4)
		r.names.merge("of old", []reportOf{{reports: 3}})
		require.Equal(t, 3.0, testutil.ToFloat64(r.metrics.relayDropped.WithLabelValues(droppedUnknown)))
	})
}

// TestRelayMessages shows that all that is sent fits into messages, and that
// what nobody sends breaks nothing.
func TestRelayMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(t)
		a, b := newReplica(t, bus, 1), newReplica(t, bus, 2)
		a.names.limit, b.names.limit = 300, 300
		var turns []*statsTurn
		name := func(n int) string { return strings.Repeat("<", 61) + fmt.Sprintf("%03d", n) }
		for n := range 200 {
			turns = append(turns, a.enter(t, name(n), processed{Epoch: 1<<64 - 1, Sequence: 1<<63 - 1}))
		}
		settle()
		require.Len(t, b.names.byName, 200)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		counts := map[string]int64{"vscode": 1}
		for n := range 63 {
			counts[strings.Repeat("a", 125)+fmt.Sprintf("%03d", n)] = 1<<63 - 1
		}
		stats := &agentstatsv1.Stats{SessionCounts: counts, ConnectionsByProto: counts, RxBytes: 1, ConnectionMedianLatencyMs: 1.5}
		for _, n := range []byte{1, 2, 3} {
			b.feed.tell(reportOf{agent: agent.ID{n}, workspace: agent.ID{n}, now: time.Now(), stats: stats})
		}
		b.tell(4, 1)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		for n, turn := range turns {
			agents := turn.next().GetAgents()
			require.Len(t, agents, 4)
			require.Len(t, agents[0].GetStats().GetSessionCounts(), fewNames)
			require.Contains(t, agents[0].GetStats().GetSessionCounts(), "vscode")
			require.Len(t, agents[0].GetStats().GetConnectionsByProto(), fewNames)
			a.names.leave(name(n), turn)
		}
		require.EqualValues(t, 200*3*2*(64-fewNames), testutil.ToFloat64(b.metrics.relayNames))
		for _, r := range []*replica{a, b} {
			require.Zero(t, testutil.ToFloat64(r.metrics.relayErrors.WithLabelValues(relayPublish)))
			require.Zero(t, testutil.ToFloat64(r.metrics.relayErrors.WithLabelValues(relayMalformed)))
		}

		for _, payload := range []string{
			"x", "[]", "{}", `{"announce":{}}`, `{"parcel":{"sequence":1,"parts":[{"name":"n","data":"AAAA"}]}}`,
			`{"parcel":{"sequence":2,"parts":[{"unnamed":1,"data":"CgMKAQE="},{"activity":1,"data":"CgMKAQE="}]}}`,
			`{"ack":{}}`, `{"gone":{"sequence":9}}`, `{"settled":[{}]}`,
		} {
			for _, channel := range []string{relayChannel, relayChannelOf(a.self)} {
				require.NoError(t, bus.Publish(t.Context(), channel, []byte(payload)))
			}
		}
		settle()
		require.Equal(t, 11.0, testutil.ToFloat64(a.metrics.relayErrors.WithLabelValues(relayMalformed)))
	})
}

func TestRelayEntrySizes(t *testing.T) {
	id := agent.ID{1}
	a := &agentstatsv1.AgentStats{AgentId: id[:], WorkspaceId: id[:], Reports: 1<<63 - 1, ReceivedAt: timestamppb.New(time.Unix(1<<40, 999_999_999))}
	a.Stats = &agentstatsv1.Stats{ConnectionMedianLatencyMs: 1}
	for _, n := range []*int64{
		&a.Stats.ConnectionCount, &a.Stats.RxPackets, &a.Stats.RxBytes, &a.Stats.TxPackets, &a.Stats.TxBytes,
		&a.Stats.SessionCountVscode, &a.Stats.SessionCountJetbrains, &a.Stats.SessionCountReconnectingPty, &a.Stats.SessionCountSsh,
	} {
		*n = 1<<63 - 1
	}
	a.Stats.SessionCounts = map[string]int64{}
	for n := range 64 {
		a.Stats.SessionCounts[strings.Repeat("x", 126)+fmt.Sprint(n+10)] = 1<<63 - 1
	}
	a.Stats.ConnectionsByProto = a.Stats.SessionCounts
	few, left := trimmed(a)
	require.Equal(t, 96, left)
	require.LessOrEqual(t, proto.Size(few), maxEntryBytes)
	require.Len(t, a.GetStats().GetSessionCounts(), 64)
	name := strings.Repeat("\x01", maxWatchName)
	require.LessOrEqual(t, partBytes+textSize(name)+(maxEntryBytes+4)*4/3+1, relayRoom)
	// The frames of messages are as large as they may be.
	for _, m := range []relayMessage{
		{Announce: &announcement{Round: 1<<63 - 1, Ask: true, interest: interest{1<<63 - 1, 1<<63 - 1}, Claims: []claim{}, Ended: []claim{}}},
		{Parcel: &parcel{parcelID: parcelID{1<<64 - 1, 1<<63 - 1}, Parts: []part{}}},
		{Settled: []settlement{}},
	} {
		text, err := json.Marshal(m)
		require.NoError(t, err)
		require.LessOrEqual(t, len(text), maxRelayPayload-relayRoom)
	}
	text, err := json.Marshal(part{Name: name, interest: interest{Unnamed: 1<<63 - 1}})
	require.NoError(t, err)
	require.LessOrEqual(t, len(text)+3, partBytes+textSize(name))
}
