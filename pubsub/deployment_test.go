package pubsub

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/postgrestest"
)

func newDeployment(t testing.TB, engine Engine, id uuid.UUID) *Deployment {
	d, err := NewDeployment(engine, id, prometheus.NewRegistry())
	require.NoError(t, err)
	return d
}

// A deployment is an engine, but for its limits.
func TestDeployment(t *testing.T) {
	open := func(t testing.TB) *Deployment { return newDeployment(t, newMemory(t), uuid.New()) }
	t.Run("Delivery", func(t *testing.T) { testDelivery(t, open(t)) })
	t.Run("Cancel", func(t *testing.T) { testCancel(t, open(t)) })
	t.Run("Concurrent", func(t *testing.T) { testConcurrent(t, open(t)) })
	t.Run("Metadata", func(t *testing.T) { testMetadata(t, NewMetadata(open(t))) })
	t.Run("Limits", func(t *testing.T) {
		d := open(t)
		long := strings.Repeat("c", MaxDeploymentChannel)
		largest := subscribe(t, d, long)
		payload := strings.Repeat("p", MaxDeploymentPayload)
		publish(t, d, long, payload)
		require.Equal(t, []string{payload}, largest.waitFor(payload))
		require.ErrorContains(t, d.Publish(t.Context(), long+"c", []byte("x")), "has 41 bytes, not 1 to 40")
		require.ErrorContains(t, d.Publish(t.Context(), "a", []byte(payload+"p")), "payload has 7978 bytes, not 1 to 7977")
		require.ErrorContains(t, d.Publish(t.Context(), "a", nil), "payload has 0 bytes")
		_, err := d.Subscribe(long+"c", func([]byte) {})
		require.ErrorContains(t, err, "has 41 bytes, not 1 to 40")
		_, err = d.Subscribe("", func([]byte) {})
		require.ErrorContains(t, err, "has 0 bytes")
	})
}

// Two deployments on one server do not receive from each other, whatever the engine. A
// message of one on a channel of the other is counted and discarded.
func TestDeploymentsApart(t *testing.T) {
	url := postgrestest.Shared(t).CreateDatabase(t)
	natsURL := startNATS(t, -1, nil).ClientURL()
	memory := newMemory(t)
	for name, open := range map[string]func(testing.TB) Engine{
		"memory":   func(testing.TB) Engine { return memory },
		"postgres": func(t testing.TB) Engine { return openPostgres(t, url) },
		"nats": func(t testing.TB) Engine {
			n, _ := newNATS(t, natsURL, Options{})
			runEngine(t, n)
			waitConnected(n, true)
			return n
		},
	} {
		t.Run(name, func(t *testing.T) {
			ids := []uuid.UUID{uuid.New(), uuid.New()}
			raw := open(t)
			a, b := newDeployment(t, raw, ids[0]), newDeployment(t, open(t), ids[1])
			again := newDeployment(t, open(t), ids[0])
			messagesA, messagesB, messagesAgain := subscribe(t, a, "changes"), subscribe(t, b, "changes"), subscribe(t, again, "changes")
			publish(t, a, "changes", "of a")
			publish(t, b, "changes", "of b")
			channelOfA := *deploymentText(ids[0]) + "_changes"
			publish(t, raw, channelOfA, *deploymentText(ids[1])+"forged")
			publish(t, raw, channelOfA, "short")
			publish(t, raw, channelOfA, *deploymentText(ids[0]))
			publish(t, a, "changes", "last of a")
			publish(t, b, "changes", "last of b")
			require.Equal(t, []string{"of a", "last of a"}, messagesA.waitFor("last of a"))
			require.Equal(t, []string{"of a", "last of a"}, messagesAgain.waitFor("last of a"))
			require.Equal(t, []string{"of b", "last of b"}, messagesB.waitFor("last of b"))
			for _, d := range []*Deployment{a, again} {
				require.InDelta(t, 1, testutil.ToFloat64(d.metrics.foreign), 0)
				require.InDelta(t, 2, testutil.ToFloat64(d.metrics.malformed), 0)
			}
		})
	}
}

// Who learns that the deployment has another id goes on with that, and notifies subscribers
// that they may have missed something.
func TestDeploymentSwitch(t *testing.T) {
	memory := newMemory(t)
	ids := []uuid.UUID{uuid.New(), uuid.New()}
	a, b := newDeployment(t, memory, ids[0]), newDeployment(t, memory, ids[1])
	messages := subscribe(t, a, "changes")
	gone, err := a.Subscribe("other", func([]byte) { t.Error("called") })
	require.NoError(t, err)
	gone()
	publish(t, a, "changes", "before")
	messages.waitFor("before")
	require.NoError(t, a.Switch(ids[0]))
	require.NoError(t, a.Switch(ids[1]))
	require.Equal(t, ids[1], a.ID())
	publish(t, b, "changes", "after")
	require.Equal(t, []string{"before", "nil", "after"}, messages.waitFor("after"))
	of := subscribe(t, b, "back")
	publish(t, a, "back", "x")
	of.waitFor("x")
}

// failing is an engine that takes no subscription after the first.
type failing struct {
	*Memory
	calls int
}

func (f *failing) Subscribe(channel string, g func([]byte)) (func(), error) {
	if f.calls++; f.calls > 3 {
		return nil, errBroken
	}
	return f.Memory.Subscribe(channel, g)
}

// A switch that fails leaves all as it was.
func TestDeploymentSwitchFails(t *testing.T) {
	engine := &failing{Memory: newMemory(t)}
	id := uuid.New()
	d := newDeployment(t, engine, id)
	one, two := subscribe(t, d, "one"), subscribe(t, d, "two")
	require.ErrorIs(t, d.Switch(uuid.New()), errBroken)
	other := newDeployment(t, engine.Memory, id)
	publish(t, other, "one", "1")
	publish(t, d, "two", "2")
	require.Equal(t, []string{"1"}, one.waitFor("1"))
	require.Equal(t, []string{"2"}, two.waitFor("2"))
	require.Equal(t, 2, len(engine.channels))
}

// After a failover in which the old primary lives on, all meet on the new one: those that
// were connected, and those that come.
func TestPostgresFailover(t *testing.T) {
	primary := postgrestest.Start(t)
	standby := primary.Standby(t)
	url := fmt.Sprintf("postgres://postgres@%s,%s/postgres?sslmode=disable", primary.Address(), standby.Address())
	opts := Options{CheckInterval: 50 * time.Millisecond, PingInterval: 50 * time.Millisecond}
	open := func() *Postgres {
		p, _ := newPostgres(t, url, opts)
		runEngine(t, p)
		waitConnected(p, true)
		return p
	}
	a, b := open(), open()
	messages := subscribe(t, b, "changes")
	publish(t, a, "changes", "before")
	messages.waitFor("before")

	standby.Promote(t, primary)
	primary.Demote(t)
	onNew, _ := newPostgres(t, standby.URL(), opts)
	runEngine(t, onNew)
	waitConnected(onNew, true)
	arrived := subscribe(t, onNew, "changes")
	for n := 0; ; n++ {
		require.NoError(t, t.Context().Err())
		// Until it has found the new one, it may publish to the old.
		_ = a.Publish(t.Context(), "changes", fmt.Appendf(nil, "after %d", n))
		arrived.mu.Lock()
		done := len(arrived.messages) > 0
		arrived.mu.Unlock()
		if done {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	for !receivedOn(messages, func() { publish(t, onNew, "changes", "from the new") }, "from the new") {
		require.NoError(t, t.Context().Err())
	}
}

// receivedOn publishes, and reports whether the text was received by then or soon.
func receivedOn(r *received, publish func(), text string) bool {
	publish()
	time.Sleep(5 * time.Millisecond)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.messages {
		if m == text {
			return true
		}
	}
	return false
}
