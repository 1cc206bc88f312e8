package edgetest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
)

// Pushes keeps what it is handed. Fields may be set while no push is under way.
type Pushes struct {
	mu sync.Mutex
	// Taken are the pushes so far, At the times that they came with.
	Taken []agent.Push
	At    []time.Time
	// Refuse and Err are what Push returns.
	Refuse []agent.PushRefusal
	Err    error
	// Release, unless nil, keeps a push waiting until it is closed.
	Release chan struct{}
}

// Push keeps a push, unless Err is set.
func (p *Pushes) Push(_ context.Context, now time.Time, push agent.Push) ([]agent.PushRefusal, error) {
	p.mu.Lock()
	release := p.Release
	p.mu.Unlock()
	if release != nil {
		<-release
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.Err != nil {
		return nil, p.Err
	}
	p.Taken, p.At = append(p.Taken, push), append(p.At, now)
	return p.Refuse, nil
}

// Names returns what was taken, as instance/snapshot.
func (p *Pushes) Names() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for _, push := range p.Taken {
		names = append(names, fmt.Sprintf("%s/%d", push.Replica, push.Snapshot))
	}
	return names
}

// Family is a family as pushes have it.
func Family(t testing.TB, f *dto.MetricFamily) []byte {
	t.Helper()
	encoded, err := proto.Marshal(f)
	require.NoError(t, err)
	return encoded
}
