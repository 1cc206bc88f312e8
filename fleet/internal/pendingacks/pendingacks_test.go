package pendingacks_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/pendingacks"
)

// instance notes what is called.
type instance struct{ calls []string }

func (i *instance) AddPending(sequence int64) { i.note("pending %d", sequence) }
func (i *instance) Supersede(epoch int64)     { i.note("superseded by %d", epoch) }

func (i *instance) Resolve(resolutions []agent.Resolution) {
	for _, r := range resolutions {
		i.note("resolved %d, refused %t", r.Sequence, r.Refusal != nil)
	}
}

func (i *instance) note(format string, args ...any) {
	i.calls = append(i.calls, fmt.Sprintf(format, args...))
}

func (i *instance) take() []string {
	calls := i.calls
	i.calls = nil
	return calls
}

func order(epoch, sequence int64) agent.Order { return agent.Order{Epoch: epoch, Sequence: sequence} }

// listOf has a request of each instance, in sessions with the epochs 10, 20 and so on.
func listOf(instances ...*instance) (l pendingacks.List[*instance]) {
	for n, i := range instances {
		l.Add(i, order(int64(n+1)*10, 1))
		i.take()
	}
	return l
}

// Of an instance the oldest request waits, and others with it.
func TestAdd(t *testing.T) {
	var l pendingacks.List[*instance]
	a, b := &instance{}, &instance{}
	l.Add(a, order(10, 1))
	l.Add(a, order(10, 2))
	l.Add(b, order(20, 7))
	require.Equal(t, pendingacks.List[*instance]{{Instance: a, Sequence: 1, Epoch: 10}, {Instance: b, Sequence: 7, Epoch: 20}}, l)
	require.Equal(t, []string{"pending 1"}, a.take())
	l.Resolve(nil)
	require.Equal(t, []string{"resolved 1, refused false"}, a.take())
	l.Remove(a)
	l.Resolve(&agent.Refusal{})
	require.Empty(t, a.take())
	require.Equal(t, []string{"pending 7", "resolved 7, refused false", "resolved 7, refused true"}, b.take())
}

// What waits again stands for what began to wait meanwhile.
func TestAppend(t *testing.T) {
	a, b := &instance{}, &instance{}
	l := listOf(a)
	var newer pendingacks.List[*instance]
	newer.Add(a, order(10, 5))
	newer.Add(b, order(20, 6))
	l.Append(newer)
	require.Equal(t, pendingacks.List[*instance]{{Instance: a, Sequence: 1, Epoch: 10}, {Instance: b, Sequence: 6, Epoch: 20}}, l)
	require.Equal(t, []string{"pending 5", "resolved 5, refused false"}, a.take())
	require.Equal(t, []string{"pending 6"}, b.take())
}

// What lost against a higher epoch is superseded, and not resolved. Of another incarnation
// that is all.
func TestSupersede(t *testing.T) {
	for stored, want := range map[int64][]bool{10: {false, false}, 11: {true, false}, 21: {true, true}, 0: {true, true}} {
		instances := []*instance{{}, {}}
		l := listOf(instances...)
		l.Supersede(stored)
		l.Resolve(nil)
		for n, superseded := range want {
			calls := "resolved 1, refused false"
			if superseded {
				calls = fmt.Sprintf("superseded by %d", stored)
			}
			require.Equal(t, []string{calls}, instances[n].take(), "stored %d, instance %d", stored, n)
		}
	}
}
