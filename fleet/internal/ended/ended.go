// Package ended remembers the last sessions of agents that have ended.
package ended

import (
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/coder/agentstatsd/agent"
)

// perAgent is how many sessions of one agent are remembered, most how many of all. These
// take 12 to 13 MB, whether they are of 5,000 agents or of 50,000.
const (
	perAgent = 10
	most     = 50_000
)

// Session is a session that an agent has, or had, at this replica.
type Session struct {
	Epoch    int64
	Instance agent.Instance
	// Version of the agent, as it says itself; empty: it does not.
	Version string
	Relayed bool
	// OpenedAt is when its hello was received. EndedAt is zero while it is open.
	OpenedAt, EndedAt time.Time
	// End is how it ended; empty: it is open.
	End string
	// Received and Durable are the sequences up to which all of its instance was received,
	// and is durable.
	Received, Durable int64
}

// Sessions are the last ones of agents. The methods may be called concurrently, and touch
// memory only.
type Sessions struct {
	mu sync.Mutex
	// Guarded by mu. agents has the sessions of each, the oldest first; count is how many.
	agents *simplelru.LRU[agent.ID, []Session]
	count  int
}

// New returns an empty Sessions.
func New() (*Sessions, error) {
	agents, err := simplelru.NewLRU[agent.ID, []Session](most, nil)
	return &Sessions{agents: agents}, err
}

// Add adds the newest session of an agent. Those of the agent whose last session is the
// oldest make room.
func (s *Sessions) Add(id agent.ID, session Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list, _ := s.agents.Get(id)
	if len(list) == perAgent {
		list = slices.Delete(list, 0, 1)
		s.count--
	}
	s.agents.Add(id, append(list, session))
	for s.count++; s.count > most; {
		_, list, _ := s.agents.RemoveOldest()
		s.count -= len(list)
	}
}

// Of returns copies of an agent's sessions, the newest first.
func (s *Sessions) Of(id agent.ID) []Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	list, _ := s.agents.Peek(id)
	list = slices.Clone(list)
	slices.Reverse(list)
	return list
}

// Remove forgets an agent.
func (s *Sessions) Remove(id agent.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if list, found := s.agents.Peek(id); found {
		s.count -= len(list)
		s.agents.Remove(id)
	}
}
