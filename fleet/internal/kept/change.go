package kept

import (
	"encoding/binary"
	"unsafe"

	"github.com/coder/agentstatsd/agent"
)

// Change counts by how much bytes change when something is kept, and something else is not
// any more. It changes nothing.
type Change struct {
	texts *Texts
	// users is by how many the users of each text change.
	users map[string]int
	bytes int64
}

// Change returns a change that is none yet.
func (t *Texts) Change() *Change { return &Change{texts: t, users: make(map[string]int)} }

func (c *Change) retain(encoded []byte) { c.users[string(encoded)]++ }

func (c *Change) release(shared *text) { c.users[shared.encoded]-- }

// Bytes returns by how much the memory grows.
func (c *Change) Bytes() int64 {
	bytes := c.bytes
	for encoded, more := range c.users {
		users := 0
		if shared := c.texts.all[encoded]; shared != nil {
			users = shared.users
		}
		switch {
		case users == 0 && more > 0:
			bytes += textBytes(len(encoded))
		case users > 0 && users+more == 0:
			bytes -= textBytes(len(encoded))
		}
	}
	return bytes
}

// AddRegistration counts a registration that will be kept.
func (c *Change) AddRegistration(reg *agent.Registration) {
	c.texts.buffer = appendDeclared(c.texts.buffer[:0], reg)
	c.retain(c.texts.buffer)
	c.bytes += (&Registration{apps: make([]agent.ID, len(reg.Apps)), rest: restOf(reg)}).Bytes()
}

// RemoveRegistration counts a registration that will not be kept any more.
func (c *Change) RemoveRegistration(r *Registration) {
	c.release(r.declared)
	c.bytes -= r.Bytes()
}

// AddWorkspace counts a workspace that will be kept.
func (c *Change) AddWorkspace(w *agent.Workspace) {
	c.texts.buffer = appendCommon(c.texts.buffer[:0], w)
	c.retain(c.texts.buffer)
	length := len(binary.AppendUvarint(nil, uint64(len(w.OwnerUsername))))
	c.bytes += int64(unsafe.Sizeof(Workspace{})) + int64(length+len(w.OwnerUsername)+len(w.Name))
}

// RemoveWorkspace counts a workspace that will not be kept any more.
func (c *Change) RemoveWorkspace(w *Workspace) {
	c.release(w.common)
	c.bytes -= w.Bytes()
}
