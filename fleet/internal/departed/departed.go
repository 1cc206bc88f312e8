// Package departed remembers the agents that were removed last.
package departed

import (
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/coder/agentstatsd/agent"
)

// most is how many agents are remembered. One takes some 400 bytes, so all take 2 MB. A
// sync that removes more is seen in the counters.
const most = 5000

// Agent is one that was removed.
type Agent struct {
	ID agent.ID
	agent.Identity
	WorkspaceID agent.ID
	// At is when this replica removed it.
	At time.Time
}

// Agents are those that were removed last. The methods may be called concurrently, and
// touch memory only.
type Agents struct{ newest *lru.Cache[agent.ID, Agent] }

// New returns an empty Agents.
func New() (Agents, error) {
	c, err := lru.New[agent.ID, Agent](most)
	return Agents{c}, err
}

// Note notes that an agent was removed. The agent that was removed first makes room. It
// retains no text of the registration: a name may share memory with all that the template
// says, which is up to 360 KB.
func (a Agents) Note(reg *agent.Registration, at time.Time) {
	ident := reg.Identity()
	for _, text := range []*string{&ident.Username, &ident.WorkspaceName, &ident.AgentName, &ident.TemplateName} {
		*text = strings.Clone(*text)
	}
	a.newest.Add(reg.ID, Agent{reg.ID, ident, reg.Workspace.ID, at})
}

// List returns all, the oldest first.
func (a Agents) List() []Agent { return a.newest.Values() }
