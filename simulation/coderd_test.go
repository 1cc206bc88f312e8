package simulation

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
)

// coderd registers agents on whichever replica it reaches. Its calls take time:
// they run beside the steps.
type coderd struct {
	calls sync.WaitGroup

	mu sync.Mutex
	// Guarded by mu.

	// named is when the newest call returned that registered an agent.
	named map[agent.ID]time.Time
	// said is what coderd said of each agent since it was made known. removedAt is when it
	// was last removed.
	said      map[agent.ID]parts
	removedAt map[agent.ID]time.Time
	// removed and added are the agents of whom that was committed since the last
	// look.
	removed, added []agent.ID

	violated error
	lines    []string
	busy     int

	// desired are the numbers of the agents that coderd has.
	desired map[int]bool
	sync    *openSync
}

// openSync is a sync that has begun.
type openSync struct {
	sync  *fleet.Sync
	on    *process
	set   []int
	begun time.Time
}

// syncKey is that of when a sync began, or its set was read; readKey only of the latter.
type syncKey struct{}

type readKey struct{}

// parts are those of a registration that coderd may lack, and that stay when they are
// known. The version of the template goes with another build.
type parts struct{ token, owner, template, build bool }

func partsOf(r *agent.Registration) parts {
	w := &r.Workspace
	return parts{
		token: r.TokenHash != [32]byte{}, owner: w.OwnerID != agent.ID{}, template: w.Template.ID != agent.ID{},
		build: w.Build.ID != agent.ID{},
	}
}

func (p parts) with(q parts) parts {
	return parts{p.token || q.token, p.owner || q.owner, p.template || q.template, p.build || q.build}
}

// partsKey is that of what a call says, by agent.
type partsKey struct{}

func withParts(ctx context.Context, set fleet.Set) context.Context {
	said := make(map[agent.ID]parts, len(set.Agents))
	for i := range set.Agents {
		said[set.Agents[i].ID] = partsOf(&set.Agents[i])
	}
	return context.WithValue(ctx, partsKey{}, said)
}

// onChange is notified by the database of each change that is committed.
func (c *coderd) onChange(ctx context.Context, removed, added []agent.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	begun, syncs := ctx.Value(syncKey{}).(time.Time)
	_, readBefore := ctx.Value(readKey{}).(time.Time)
	c.removed = append(c.removed, removed...)
	c.added = append(c.added, added...)
	for _, id := range removed {
		delete(c.said, id)
		c.removedAt[id] = time.Now()
	}
	for _, id := range added {
		c.said[id] = parts{}
		if at := c.removedAt[id]; readBefore && at.After(begun) {
			c.violated = errors.Join(c.violated, fmt.Errorf(
				"a sync of what was read at %s brings back agent %d, which was removed at %s", clock(begun), id[15], clock(at)))
		}
	}
	if said, ok := ctx.Value(partsKey{}).(map[agent.ID]parts); ok {
		for id, p := range said {
			if before, registered := c.said[id]; registered {
				c.said[id] = before.with(p)
			}
		}
	}
	for _, id := range removed {
		if at, known := c.named[id]; syncs && known && at.After(begun) {
			c.violated = errors.Join(c.violated, fmt.Errorf(
				"a sync that began at %s removes agent %d, which was registered at %s", clock(begun), id[15], clock(at)))
		}
	}
}

// call runs f beside the steps; doing names it.
func (c *coderd) call(doing string, f func(ctx context.Context) (string, error)) {
	c.mu.Lock()
	c.busy++
	c.lines = append(c.lines, "coderd: "+doing)
	c.mu.Unlock()
	c.calls.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		what, err := f(ctx)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.busy--
		if err != nil {
			what = err.Error()
		}
		c.lines = append(c.lines, fmt.Sprintf("coderd: %s: %s", doing, what))
	})
}

func (c *coderd) isBusy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.busy > 0
}

// register registers agents on p.
func (w *world) register(p *process, numbers ...int) {
	for _, n := range numbers {
		w.coderd.desired[n] = true
	}
	set := w.set(numbers...)
	w.coderd.call(fmt.Sprintf("register %v on %s", numbers, p.name), func(ctx context.Context) (string, error) {
		return "done", w.registerNow(ctx, p, set, numbers...)
	})
}

func (w *world) registerNow(ctx context.Context, p *process, set fleet.Set, numbers ...int) error {
	_, err := p.fleet.Register(withParts(ctx, set), set)
	if err != nil {
		return err
	}
	c := w.coderd
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range numbers {
		c.named[agentID(n)] = time.Now()
	}
	return nil
}

// deregister removes agents on p.
func (w *world) deregister(p *process, numbers ...int) {
	for _, n := range numbers {
		w.coderd.desired[n] = false
	}
	w.coderd.call(fmt.Sprintf("deregister %v on %s", numbers, p.name), func(ctx context.Context) (string, error) {
		return "done", w.deregisterNow(ctx, p, numbers...)
	})
}

func (w *world) deregisterNow(ctx context.Context, p *process, numbers ...int) error {
	ids := make([]agent.ID, len(numbers))
	for i, n := range numbers {
		ids[i] = agentID(n)
	}
	_, err := p.fleet.Deregister(ctx, ids, nil)
	return err
}

// bounce removes agents and registers them again at once.
func (w *world) bounce(p, q *process, numbers ...int) {
	for _, n := range numbers {
		w.coderd.desired[n] = true
	}
	set := w.set(numbers...)
	w.coderd.call(fmt.Sprintf("deregister %v on %s, register them on %s", numbers, p.name, q.name), func(ctx context.Context) (string, error) {
		if err := w.deregisterNow(ctx, p, numbers...); err != nil {
			return "", err
		}
		return "done", w.registerNow(ctx, q, set, numbers...)
	})
}

// beginSync begins a sync on p of what coderd has now.
func (w *world) beginSync(p *process) {
	s, err := p.fleet.BeginSync()
	if err != nil {
		w.log("coderd: begin a sync on %s: %v", p.name, err)
		return
	}
	w.coderd.sync = &openSync{sync: s, on: p, set: w.desired(), begun: time.Now()}
	w.log("coderd: begins a sync of %v on %s", w.coderd.sync.set, p.name)
}

// endSync applies the sync that has begun.
func (w *world) endSync() {
	s := w.coderd.sync
	w.coderd.sync = nil
	if !s.on.serving {
		return
	}
	set := w.set(s.set...)
	if w.partial != nil { // what was begun is the reading
		var err error
		if s.sync, err = s.on.fleet.BeginSync(); err != nil {
			w.log("coderd: begin a sync on %s: %v", s.on.name, err)
			return
		}
		set.ReadAt = s.begun
	}
	w.coderd.call(fmt.Sprintf("apply the sync of %v on %s", s.set, s.on.name), func(ctx context.Context) (string, error) {
		ctx = withParts(context.WithValue(ctx, syncKey{}, s.begun), set)
		if !set.ReadAt.IsZero() {
			ctx = context.WithValue(ctx, readKey{}, s.begun)
		}
		done, err := s.sync.Apply(ctx, set, true)
		if err != nil {
			return "", err
		}
		c := w.coderd
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, n := range s.set {
			c.named[agentID(n)] = time.Now()
		}
		return fmt.Sprintf("%d deregistered", done.Deregistered), nil
	})
}

// desired returns the agents that coderd has, in order.
func (w *world) desired() (numbers []int) {
	for n, is := range w.coderd.desired {
		if is {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers
}

func (w *world) set(numbers ...int) fleet.Set {
	var set fleet.Set
	for _, n := range numbers {
		r := w.registration(n)
		if w.partial != nil {
			w.leaveOut(&r)
		}
		set.Agents = append(set.Agents, r)
	}
	return set
}

// leaveOut draws which parts coderd lacks.
func (w *world) leaveOut(r *agent.Registration) {
	lacks := func(part string) bool { return w.partial.float(part+r.Name) < 0.3 }
	if lacks("token") {
		r.TokenHash = [32]byte{}
	}
	if lacks("owner") {
		r.Workspace.OwnerID = agent.ID{}
	}
	if lacks("template") {
		r.Workspace.Template.ID = agent.ID{}
	}
	if lacks("version") {
		r.Workspace.Template.Version = agent.UnknownVersion
	}
	if lacks("build") {
		r.Workspace.Build = agent.Build{}
	}
}

func agentID(n int) agent.ID { return agent.ID{0: 0xaa, 15: byte(n)} }

// appID is the id of an app by its part.
func appID(part string) agent.ID { return agent.ID{0: 0xa9, 15: part[len(health)]} }

func token(n int) string { return fmt.Sprintf("token-%d", n) }

// registration of agent n: two agents in each workspace, of one build.
func (w *world) registration(n int) agent.Registration {
	built := w.began.Add(-time.Minute)
	workspace := (n + 1) / 2
	return agent.Registration{
		ID:                agentID(n),
		Name:              fmt.Sprintf("agent%d", n),
		CreatedAt:         built.Add(time.Second),
		ConnectionTimeout: time.Hour,
		TokenHash:         sha256.Sum256([]byte(token(n))),
		Workspace: agent.Workspace{
			ID: agent.ID{0: 0xab, 15: byte(workspace)}, Name: fmt.Sprintf("ws%d", workspace),
			OwnerID: agent.ID{0: 0xac}, OwnerUsername: "ada",
			Template: agent.Template{ID: agent.ID{0: 0xad}, Name: "docker", Version: "1"},
			Build:    agent.Build{ID: agent.ID{0: 0xae, 15: byte(workspace)}, CreatedAt: built, Transition: "start"},
		},
		Apps: []agent.App{
			{ID: appID(health + "a"), Slug: "a", Health: agent.AppHealthInitializing},
			{ID: appID(health + "b"), Slug: "b", Health: agent.AppHealthInitializing},
			{ID: appID(health + "c"), Slug: "c", Health: agent.AppHealthInitializing},
		},
	}
}
