package memstore

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/store/storetest"
)

func TestContract(t *testing.T) {
	storetest.Run(t, func(_ testing.TB, opts storetest.Options) storetest.Store {
		return New().Open(Options{TouchInterval: opts.TouchInterval, RemovalsKept: opts.RemovalsKept, NamedKept: opts.NamedKept})
	})
}

// faults are drawn from a list, one for each attempt; then there are none.
func faults(list ...Fault) func(string, bool) Fault {
	return func(string, bool) Fault {
		if len(list) == 0 {
			return Fault{}
		}
		next := list[0]
		list = list[1:]
		return next
	}
}

func network(node uint64, sequence int64) []agent.State {
	return []agent.State{{
		Agent: storetest.ID(1), Network: agent.Network{NodeID: node}, NetworkOrder: agent.Order{Epoch: 1, Sequence: sequence},
	}}
}

// What is tried again at once, and what its caller gets.
func TestAttempts(t *testing.T) {
	for name, c := range map[string]struct {
		faults []Fault
		want   error
	}{
		"serialization":       {[]Fault{{Err: ErrSerialization}, {Err: ErrSerialization}}, nil},
		"serialization ever":  {[]Fault{{Err: ErrSerialization}, {Err: ErrSerialization}, {Err: ErrSerialization}}, ErrSerialization},
		"down":                {[]Fault{{Err: ErrRefused}, {Err: ErrRefused}, {Err: ErrReset}}, agent.ErrStoreDown},
		"hangs":               {[]Fault{{Hang: true}}, context.DeadlineExceeded},
		"slow":                {[]Fault{{Before: 2 * time.Second}}, context.DeadlineExceeded},
		"lost, then the same": {[]Fault{{Lost: true}}, agent.ErrOutdated}, // it was committed
	} {
		bubble.Test(t, func(t *testing.T) {
			d := New()
			s := d.Open(Options{Fault: faults(c.faults...)})
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := s.ApplyChange(ctx, 1, agent.Change{Workspaces: []agent.Workspace{{ID: storetest.ID(1)}}})
			d.Wait()
			if c.want == nil {
				require.NoError(t, err, name)
				return
			}
			require.ErrorIs(t, err, c.want, name)
		})
	}
}

// A transaction whose answer is lost commits later; a cursor that was read before
// does not miss it.
func TestLateCommit(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		d := New()
		reader := d.Open(Options{})
		storetest.Register(t, reader, storetest.ID(1))
		late := Fault{Lost: true, Late: time.Second}
		writer := d.Open(Options{Fault: faults(late, Fault{Hang: true})})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		require.ErrorIs(t, save(ctx, writer), context.DeadlineExceeded)
		storetest.Register(t, reader, storetest.ID(2)) // a later one, which commits first
		states, next, err := reader.States(t.Context(), 0)
		require.NoError(t, err)
		require.Empty(t, states)
		d.Wait()
		states, _, err = reader.States(t.Context(), next)
		require.NoError(t, err)
		require.Equal(t, network(7, 1), states)
	})
}

// After a failover a replica reads what the old server had until it writes.
func TestFailOver(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		d := New()
		a, b := d.Open(Options{}), d.Open(Options{Fault: faults(Fault{}, Fault{Work: time.Second})})
		storetest.Register(t, a, storetest.ID(1))
		require.NoError(t, b.Ping(t.Context()))
		lost := make(chan error, 1)
		go func() { lost <- save(t.Context(), b) }()
		time.Sleep(time.Second / 2)
		d.FailOver()
		require.NoError(t, <-lost, "tried again on the new server")
		states, _, err := a.States(t.Context(), 0)
		require.NoError(t, err)
		require.Empty(t, states, "of the old server")
		storetest.SaveSessions(t, a, []agent.SessionRecord{{Agent: storetest.ID(1), Epoch: 1}})
		states, _, err = a.States(t.Context(), 0)
		require.NoError(t, err)
		require.Equal(t, network(7, 1), states)
	})
}

// A process that is gone writes nothing more, also by what was under way.
func TestKill(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		d := New()
		reader := d.Open(Options{})
		storetest.Register(t, reader, storetest.ID(1))
		s := d.Open(Options{Fault: faults(Fault{Work: time.Second})})
		under := make(chan error, 1)
		go func() { under <- save(t.Context(), s) }()
		time.Sleep(time.Second / 2)
		s.Kill()
		require.ErrorIs(t, <-under, ErrKilled)
		require.ErrorIs(t, s.Ping(t.Context()), ErrKilled)
		states, _, err := reader.States(t.Context(), 0)
		require.NoError(t, err)
		require.Empty(t, states)
	})
}

// save writes the state that network returns.
func save(ctx context.Context, s *Store) error {
	_, err := s.SaveStates(ctx, network(7, 1))
	return err
}
