package registrations

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/bridge/internal/coder"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/codertest"
)

// churnHistories is how many histories are lived through; a fifth of it in the short mode.
const churnHistories = 40

// churn is what users do before a request is answered.
type churn struct {
	what      string
	workspace int
	request   int
}

func (c churn) String() string { return fmt.Sprintf("%s %d before %d", c.what, c.workspace, c.request) }

var aChurn = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) churn {
	return churn{
		what: rapid.SampledFrom([]string{
			"start", "start", "start and connect", "start and connect", "start and connect", "connect", "stop", "stop", "stop", "rebuild", "rebuild", "rename", "rename", "delete", "create", "create", "build", "fail",
			"lose rights", "get rights", "get rights",
		}).Draw(t, "what"),
		workspace: rapid.IntRange(0, 39).Draw(t, "workspace"),
		request:   rapid.IntRange(1, 90).Draw(t, "request"),
	}
}), 10, 80)

// users change workspaces while their list is read.
type users struct {
	rest     *codertest.REST
	history  []churn
	requests int
	builds   map[int]int
	// lived are the agents that were current all the time since the last sync began.
	lived map[uuid.UUID]struct{}
	fail  bool
	s     *setup
}

func (u *users) request(*http.Request) *codertest.Answer {
	u.requests++
	for _, c := range u.history {
		if c.request == u.requests {
			u.do(c)
		}
	}
	if u.fail {
		u.fail = false
		return &codertest.Answer{Status: 500}
	}
	return nil
}

func (u *users) do(c churn) {
	n, exists := c.workspace, false
	for _, id := range u.rest.IDs() {
		exists = exists || id == workspaceID(n)
	}
	change := func(transition, job string) {
		if exists {
			u.builds[n]++
			u.rest.Change(workspaceID(n), func(w *codertest.Workspace) { w.Build = built(n, 1+u.builds[n], transition, job) })
		}
	}
	switch c.what {
	case "start", "rebuild":
		change("start", "succeeded")
	case "build":
		change("start", "running")
	case "stop":
		change("stop", "succeeded")
	case "rename":
		if exists {
			u.rest.Change(workspaceID(n), func(w *codertest.Workspace) { w.Name, w.Owner = w.Name+"x", "zoe" })
		}
	case "delete":
		if exists {
			u.rest.Delete(workspaceID(n))
		}
	case "create":
		if !exists && u.builds[n] == 0 {
			u.rest.Put(started(n))
		}
	case "start and connect":
		if change("start", "succeeded"); exists {
			u.connect(n)
		}
	case "connect":
		if exists {
			u.connect(n)
		}
	case "fail":
		u.fail = true
	case "lose rights":
		u.rest.SetToken(token, codertest.Token{Role: codertest.Member})
	case "get rights":
		u.rest.SetToken(token, codertest.Token{})
	}
	u.keepLiving()
}

// connect has the agent of a workspace connect. If it is registered, it lives from then on.
func (u *users) connect(n int) {
	var agent uuid.UUID
	u.rest.Change(workspaceID(n), func(w *codertest.Workspace) {
		for _, a := range w.Build.Agents {
			agent = a.ID
		}
	})
	u.s.Unknown(agent, workspaceID(n))
	if u.s.registerUnknown(u.s.t.Context()) != nil {
		return
	}
	if _, registered := u.s.agents[agent]; registered {
		u.lived[agent] = struct{}{}
	}
}

// keepLiving takes out of lived what is not current any more.
func (u *users) keepLiving() {
	now := u.rest.AgentIDs()
	maps.DeleteFunc(u.lived, func(id uuid.UUID, _ struct{}) bool {
		_, lives := now[id]
		return !lives
	})
}

func workspaceID(n int) uuid.UUID { return id('w', n, 0) }

// Whatever users do while pages are read, and whether the token has rights: no agent is
// removed that lives. When they pause, one sync has all as it is.
func TestChurnRemovesNoLivingAgent(t *testing.T) {
	histories := churnHistories
	if testing.Short() {
		histories /= 5
	}
	for seed := range histories {
		history := aChurn.Example(seed)
		bubble.Test(t, func(t *testing.T) {
			rest := codertest.NewREST()
			rest.HidesDeleted = seed%2 == 0
			for n := range 25 {
				w := started(n)
				if n%3 == 0 {
					w.Organization = "other"
				}
				if n%4 == 0 {
					w.Build = built(n, 1, "stop", "succeeded")
				}
				rest.Put(w)
			}
			u := &users{rest: rest, history: history, builds: make(map[int]int)}
			rest.OnRequest = u.request
			s := newSetup(t, rest, 2)
			u.s, u.lived = s, make(map[uuid.UUID]struct{})
			for round := 0; u.requests < 90; round++ {
				time.Sleep(2 * time.Second)
				registered := s.registered()
				u.lived = rest.AgentIDs()
				maps.DeleteFunc(u.lived, func(id uuid.UUID, _ struct{}) bool { return registered[id] == nil })
				err := s.Registrations.sync(t.Context())
				if err != nil {
					require.True(t, errors.Is(err, errDoubt) || errors.Is(err, coder.ErrUnauthorized), "%v", err)
				}
				registered = s.registered()
				for _, id := range sortedIDs(u.lived) {
					require.Contains(t, registered, id, "seed %d, sync %d: %v", seed, round, history)
				}
			}
			u.history = nil
			rest.SetToken(token, codertest.Token{})
			s.sync(t)
			want := rest.AgentIDs()
			for id, a := range s.registered() {
				if _, current := want[id]; !current {
					// What is hidden may be of an organization of which nothing else is visible.
					// A build that is under way leaves the agents of the one before.
					require.False(t, rest.HasBuilt(uuid.UUID(a.GetWorkspace().GetId())), "seed %d: %v", seed, history)
				}
				if _, current := want[id]; current {
					rest.Change(uuid.UUID(a.GetWorkspace().GetId()), func(w *codertest.Workspace) {
						require.Equal(t, w.Name+" of "+w.Owner, a.GetWorkspace().GetName()+" of "+a.GetWorkspace().GetOwnerUsername(), "seed %d: %v", seed, history)
					})
				}
				delete(want, id)
			}
			require.Empty(t, want, "seed %d: %v", seed, history)
		})
	}
}
