package kept

import (
	"encoding/binary"
	"slices"
	"time"
	"unsafe"

	"github.com/coder/agentstatsd/agent"
)

// Registration is an agent.Registration without its ID. The fields that it does not have
// are in declared and rest.
type Registration struct {
	Workspace   *Workspace
	TokenHash   [32]byte
	Incarnation int64

	createdAt int64
	// declared has what the template says of the agent: many agents have the same.
	declared *text
	apps     []agent.ID
	rest     *rest // nil: it is zero
}

// rest is what few agents have.
type rest struct {
	parent     agent.ID
	observedAt int64
	status     agent.Status
	observed   string // encoded, without At and Status
}

// Registration returns what is kept of reg, whose workspace is w.
func (t *Texts) Registration(reg *agent.Registration, w *Workspace) *Registration {
	t.buffer = appendDeclared(t.buffer[:0], reg)
	r := &Registration{
		Workspace: w, TokenHash: reg.TokenHash, Incarnation: reg.Incarnation,
		createdAt: nanos(reg.CreatedAt), declared: t.retain(t.buffer), rest: restOf(reg),
	}
	if len(reg.Apps) > 0 {
		r.apps = make([]agent.ID, len(reg.Apps))
		for i := range reg.Apps {
			r.apps[i] = reg.Apps[i].ID
		}
	}
	return r
}

// ReleaseRegistration is called once for each kept registration that is not used any more.
func (t *Texts) ReleaseRegistration(r *Registration) { t.release(r.declared) }

func restOf(reg *agent.Registration) *rest {
	o := &reg.Observed
	if reg.Parent == (agent.ID{}) && o.Equal(&agent.Observation{}) {
		return nil
	}
	return &rest{reg.Parent, nanos(o.At), agent.Status(wordOf(o.Status)), encodeObserved(o)}
}

// wordOf returns the word as a constant, if it is one, so that it takes no memory.
func wordOf[W ~string](word W) string {
	if at := slices.Index(words[:], string(word)); at >= 0 {
		return words[at]
	}
	return string(word)
}

func encodeObserved(o *agent.Observation) string {
	if o.Equal(&agent.Observation{At: o.At, Status: o.Status}) {
		return ""
	}
	var array [512]byte
	dst := appendWord(array[:0], o.Lifecycle.State)
	dst = binary.AppendVarint(dst, nanos(o.Lifecycle.ChangedAt))
	return string(appendNetwork(dst, &o.Network))
}

func appendDeclared(dst []byte, reg *agent.Registration) []byte {
	dst = binary.AppendVarint(dst, int64(reg.ConnectionTimeout))
	dst = appendText(dst, reg.Name)
	dst = binary.AppendUvarint(dst, uint64(len(reg.Apps)))
	for i := range reg.Apps {
		app := &reg.Apps[i]
		dst = appendWord(appendText(appendText(dst, app.Slug), app.DisplayName), app.Health)
	}
	dst = binary.AppendUvarint(dst, uint64(len(reg.MetadataKeys)))
	for _, key := range reg.MetadataKeys {
		dst = appendText(dst, key)
	}
	return dst
}

// ConnectionTimeout returns that of the registration.
func (r *Registration) ConnectionTimeout() time.Duration {
	d := decoder{r.declared.encoded}
	return time.Duration(d.int())
}

// Name returns the agent's name.
func (r *Registration) Name() string {
	d := decoder{r.declared.encoded}
	d.int()
	return d.text()
}

// CreatedAt returns when coderd made the agent, in UTC.
func (r *Registration) CreatedAt() time.Time { return timeOf(r.createdAt) }

// Parent returns the agent that this one is a sub-agent of; zero: none.
func (r *Registration) Parent() agent.ID {
	if r.rest == nil {
		return agent.ID{}
	}
	return r.rest.parent
}

// Observed returns what coderd knew of the agent's state.
func (r *Registration) Observed() (o agent.Observation) {
	if r.rest == nil {
		return o
	}
	o.At, o.Status = timeOf(r.rest.observedAt), r.rest.status
	if r.rest.observed != "" {
		d := decoder{r.rest.observed}
		o.Lifecycle.State = agent.LifecycleState(d.word())
		o.Lifecycle.ChangedAt = timeOf(d.int())
		o.Network = d.network()
	}
	return o
}

// ObservedStatus returns the status of Observed and when that was.
func (r *Registration) ObservedStatus() (agent.Status, time.Time) {
	if r.rest == nil {
		return "", time.Time{}
	}
	return r.rest.status, timeOf(r.rest.observedAt)
}

// HasMetadataKeys returns whether the template declares any.
func (r *Registration) HasMetadataKeys() bool { return len(r.MetadataKeys()) > 0 }

// MetadataKeys returns those that the template declares.
func (r *Registration) MetadataKeys() []string {
	d := decoder{r.declared.encoded}
	d.int()
	d.text()
	for range d.uint() {
		d.text()
		d.text()
		d.word()
	}
	n := d.uint()
	if n == 0 {
		return nil
	}
	keys := make([]string, n)
	for i := range keys {
		keys[i] = d.text()
	}
	return keys
}

// Value returns the registration of the agent with the id.
func (r *Registration) Value(id agent.ID) *agent.Registration {
	reg := &agent.Registration{}
	r.CopyTo(reg, id)
	return reg
}

// CopyTo sets reg to the registration of the agent with the id. It reuses the memory of
// its apps and metadata keys.
func (r *Registration) CopyTo(reg *agent.Registration, id agent.ID) {
	d := decoder{r.declared.encoded}
	*reg = agent.Registration{
		ID: id, ConnectionTimeout: time.Duration(d.int()), Name: d.text(), CreatedAt: timeOf(r.createdAt),
		TokenHash: r.TokenHash, Workspace: r.Workspace.Value(), Parent: r.Parent(), Observed: r.Observed(),
		Incarnation: r.Incarnation, Apps: reg.Apps[:0], MetadataKeys: reg.MetadataKeys[:0],
	}
	n := int(d.uint())
	reg.Apps = slices.Grow(reg.Apps, n)
	for i := range n {
		reg.Apps = append(reg.Apps, agent.App{ID: r.apps[i], Slug: d.text(), DisplayName: d.text(), Health: agent.AppHealth(d.word())})
	}
	n = int(d.uint())
	reg.MetadataKeys = slices.Grow(reg.MetadataKeys, n)
	for range n {
		reg.MetadataKeys = append(reg.MetadataKeys, d.text())
	}
}

// Equal reports whether r is kept of reg, without the incarnations.
func (r *Registration) Equal(reg *agent.Registration) bool {
	return r.TokenHash == reg.TokenHash && r.createdAt == nanos(reg.CreatedAt) && r.Workspace.Equal(&reg.Workspace) &&
		r.isDeclared(reg) && r.isRest(reg)
}

func (r *Registration) isDeclared(reg *agent.Registration) bool {
	d := decoder{r.declared.encoded}
	if d.int() != int64(reg.ConnectionTimeout) || d.text() != reg.Name || d.uint() != uint64(len(reg.Apps)) {
		return false
	}
	for i := range reg.Apps {
		app := &reg.Apps[i]
		if r.apps[i] != app.ID || d.text() != app.Slug || d.text() != app.DisplayName || d.word() != string(app.Health) {
			return false
		}
	}
	if d.uint() != uint64(len(reg.MetadataKeys)) {
		return false
	}
	for _, key := range reg.MetadataKeys {
		if d.text() != key {
			return false
		}
	}
	return true
}

func (r *Registration) isRest(reg *agent.Registration) bool {
	if r.rest == nil {
		return reg.Parent == agent.ID{} && reg.Observed.Equal(&agent.Observation{})
	}
	o := r.Observed()
	return r.rest.parent == reg.Parent && o.Equal(&reg.Observed)
}

// Identity returns what the agent's series are labelled by.
func (r *Registration) Identity() agent.Identity {
	owner, name := r.Workspace.Names()
	return agent.Identity{
		Username: owner, WorkspaceName: name, AgentName: r.Name(),
		TemplateName: r.Workspace.Template().Name, CreatedAt: r.CreatedAt(),
	}
}

// Bytes estimates the memory of r, without its workspace and without what it shares.
func (r *Registration) Bytes() int64 {
	n := int(unsafe.Sizeof(*r)) + len(r.apps)*int(unsafe.Sizeof(agent.ID{}))
	if r.rest != nil {
		n += restBytes(r.rest)
	}
	return int64(n)
}

func restBytes(r *rest) int { return int(unsafe.Sizeof(*r)) + len(r.status) + len(r.observed) }
