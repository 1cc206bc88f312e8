package kept

import (
	"time"
	"unsafe"

	"github.com/coder/agentstatsd/agent"
)

// Workspace is an agent.Workspace. The fields that it does not have are in names and
// common.
type Workspace struct {
	ID      agent.ID
	OwnerID agent.ID
	BuildID agent.ID
	builtAt int64
	// names has the length of the owner's name, that name and the workspace's.
	names string
	// common has the template, the organization and how the workspace was built: many
	// workspaces have the same.
	common *text
}

// Workspace returns what is kept of w.
func (t *Texts) Workspace(w *agent.Workspace) *Workspace {
	t.buffer = appendCommon(t.buffer[:0], w)
	k := &Workspace{ID: w.ID, OwnerID: w.OwnerID, BuildID: w.Build.ID, builtAt: nanos(w.Build.CreatedAt), common: t.retain(t.buffer)}
	t.buffer = append(appendText(t.buffer[:0], w.OwnerUsername), w.Name...)
	k.names = string(t.buffer)
	return k
}

// ReleaseWorkspace is called once for each kept workspace that is not used any more.
func (t *Texts) ReleaseWorkspace(w *Workspace) { t.release(w.common) }

func appendCommon(dst []byte, w *agent.Workspace) []byte {
	dst = append(dst, w.Template.ID[:]...)
	dst = appendText(appendText(dst, w.Template.Name), w.Template.Version)
	dst = appendText(dst, w.Organization)
	return appendBool(appendWord(dst, w.Build.Transition), w.Build.IsPrebuild)
}

// Names returns the owner's username and the workspace's name.
func (w *Workspace) Names() (owner, name string) {
	d := decoder{w.names}
	return d.text(), d.rest
}

// Template returns that of the workspace.
func (w *Workspace) Template() agent.Template {
	d := decoder{w.common.encoded}
	return agent.Template{ID: d.id(), Name: d.text(), Version: d.text()}
}

// BuiltAt returns when the newest build was made, in UTC; zero: none is known.
func (w *Workspace) BuiltAt() time.Time { return timeOf(w.builtAt) }

// Value returns the workspace. It allocates nothing.
func (w *Workspace) Value() agent.Workspace {
	owner, name := w.Names()
	d := decoder{w.common.encoded}
	return agent.Workspace{
		ID: w.ID, Name: name, OwnerID: w.OwnerID, OwnerUsername: owner,
		Template:     agent.Template{ID: d.id(), Name: d.text(), Version: d.text()},
		Organization: d.text(),
		Build: agent.Build{
			ID: w.BuildID, CreatedAt: timeOf(w.builtAt),
			Transition: agent.Transition(d.word()), IsPrebuild: d.bool(),
		},
	}
}

// Equal reports whether w is kept of the other workspace.
func (w *Workspace) Equal(other *agent.Workspace) bool {
	if w.ID != other.ID || w.BuildID != other.Build.ID || w.builtAt != nanos(other.Build.CreatedAt) {
		return false
	}
	value := w.Value()
	return value.Equal(other)
}

// Bytes estimates the memory of w without what it shares.
func (w *Workspace) Bytes() int64 { return int64(unsafe.Sizeof(*w)) + int64(len(w.names)) }
