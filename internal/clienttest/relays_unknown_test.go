package clienttest

import (
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// startRegistry starts a fakeRegistry and Relays of a coderd.
func startRegistry(t *testing.T, opts client.RelaysOptions) (*fakeRegistry, *client.Relays) {
	t.Helper()
	fake := &fakeRegistry{known: make(map[uuid.UUID]bool), opened: make(map[uuid.UUID]int)}
	n := newNetwork(func(s *grpc.Server) {
		agentstatsv1.RegisterAgentServiceServer(s, fake)
		agentstatsv1.RegisterCoderdServiceServer(s, fake)
	})
	t.Cleanup(n.stop)
	conn, err := client.Dial("passthrough:///x", client.DialOptions{Plaintext: true}, grpc.WithContextDialer(n.dial))
	require.NoError(t, err)
	coderd, err := client.NewCoderd(conn, client.CoderdOptions{})
	require.NoError(t, err)
	relays, err := coderd.Relays(opts)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, relays.Close(t.Context()))
		require.NoError(t, conn.Close())
	})
	return fake, relays
}

func (f *fakeRegistry) setKnown(known bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known[agentID] = known
}

// unknowns counts calls of OnUnknown.
type unknowns struct {
	mu    sync.Mutex
	calls map[uuid.UUID]int
}

func (u *unknowns) add(id uuid.UUID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.calls == nil {
		u.calls = make(map[uuid.UUID]int)
	}
	u.calls[id]++
}

func (u *unknowns) take() map[uuid.UUID]int {
	u.mu.Lock()
	defer u.mu.Unlock()
	calls := u.calls
	u.calls = nil
	return calls
}

// Of an agent that the service does not know the host gets a call after each session that
// is refused, until it is known. Of one with a registration it gets none.
func TestRelaysOfAnUnknownAgent(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var calls unknowns
		fake, relays := startRegistry(t, client.RelaysOptions{Backoff: client.Backoff{Min: time.Second, Max: time.Second}, OnUnknown: calls.add})
		a := connectRelayed(t, relays)
		defer a.Disconnect()
		time.Sleep(time.Minute)
		called := calls.take()
		require.Len(t, called, 1)
		require.Greater(t, called[agentID], 10)
		fake.setKnown(true)
		time.Sleep(5 * time.Second)
		calls.take()

		time.Sleep(time.Minute)
		require.Empty(t, calls.take())
		registered, err := relays.ConnectRegistered(registrations(2)[1], "")
		require.NoError(t, err)
		defer registered.Disconnect()
		time.Sleep(time.Minute)
		require.Empty(t, calls.take())
		fake.mu.Lock()
		defer fake.mu.Unlock()
		require.Equal(t, 1, fake.calls)
	})
}

// While OnUnknown hangs, agents have their sessions, and others their calls.
func TestRelaysGoOnWhileOnUnknownHangs(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		hanging := make(chan struct{})
		var calls unknowns
		fake, relays := startRegistry(t, client.RelaysOptions{
			Backoff: client.Backoff{Min: time.Second, Max: time.Second},
			OnUnknown: func(id uuid.UUID) {
				calls.add(id)
				if id == agentID {
					<-hanging
				}
			},
		})
		first := connectRelayed(t, relays)
		second, err := relays.Connect(uuid.UUID(registrations(2)[1].GetId()), "")
		require.NoError(t, err)
		time.Sleep(time.Minute)
		called := calls.take()
		require.Len(t, called, 2)
		require.Equal(t, 1, called[agentID])

		fake.setKnown(true)
		time.Sleep(time.Minute)
		fake.mu.Lock()
		require.Equal(t, map[uuid.UUID]int{agentID: 1}, fake.opened)
		fake.mu.Unlock()
		close(hanging)
		first.Disconnect()
		second.Disconnect()
	})
}
