package registrations

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/bridge/internal/coder"
	"github.com/coder/agentstatsd/client"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// maxRounds bounds how often the list is read in one sync, as rows are missing.
	maxRounds = 3
	// maxLookups bounds the workspaces that one sync looks for by their ids. If more than
	// half are absent, the token may have lost rights, and few are looked for.
	maxLookups       = 200
	maxDoubtfulReads = 20
)

// reading is what a sync read.
type reading struct {
	// at is before all that was read.
	at time.Time
	// known are the workspaces that the service knows, and those of the sync before, with
	// the names of their organizations.
	known map[uuid.UUID]string
	// seen are those that coderd has. One that moved between pages is there as it was read
	// last.
	seen map[uuid.UUID]*coder.Workspace
	// gone are known ones that are deleted. hidden are those of which coderd says that there
	// are none, or that the token may not see them. keep are those that stay as they are.
	gone, hidden, keep map[uuid.UUID]struct{}
	// unreadable is the number of workspaces that cannot be told from others.
	unreadable int
	// trusted: what coderd shows is all that it has.
	trusted bool
}

// sync reads all that coderd has, and has the service know that.
func (r *Registrations) sync(ctx context.Context) error {
	// Whoever asked for a sync gets this one.
	select {
	case <-r.wantSync:
	default:
	}
	p, err := r.read(ctx)
	if err != nil {
		return err
	}
	r.noteVisible(ctx, p)
	return r.apply(ctx, p)
}

// noteVisible notes how many workspaces coderd shows. With none it asks whether the user
// may see them: an empty list is the answer to who may not, too. A token may have no right
// to ask that.
func (r *Registrations) noteVisible(ctx context.Context, p *reading) {
	sees := true
	if len(p.seen)+p.unreadable == 0 {
		all, err := r.coder.SeesAll(ctx)
		if err != nil {
			r.log.Debug("the API does not say which roles the user of the API token has", "error", err)
		}
		sees = all || err != nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sees && !sees {
		r.log.Warn("coderd shows no workspaces: the user of the API token lacks the role Template Admin")
	}
	r.visible, r.sees = len(p.seen), sees
}

func (r *Registrations) read(ctx context.Context) (*reading, error) {
	p := &reading{
		at:    time.Now(),
		known: make(map[uuid.UUID]string),
		seen:  make(map[uuid.UUID]*coder.Workspace),
		gone:  make(map[uuid.UUID]struct{}), hidden: make(map[uuid.UUID]struct{}), keep: make(map[uuid.UUID]struct{}),
	}
	if err := r.readKnown(ctx, p); err != nil {
		return nil, err
	}
	for range maxRounds {
		pages, err := r.coder.Workspaces(ctx, p.add)
		if err != nil {
			return nil, err
		}
		p.unreadable = pages.Unreadable
		if err := r.lookForAbsent(ctx, p); err != nil {
			return nil, err
		}
		if len(p.seen)+len(p.keep)+p.unreadable >= pages.Count {
			break
		}
	}
	return p, r.confirmHidden(ctx, p)
}

// readKnown reads what the service knows. It comes first: what is registered later is not
// among it, so nobody looks for that.
func (r *Registrations) readKnown(ctx context.Context, p *reading) error {
	ctx, cancel := context.WithTimeout(ctx, serviceTimeout)
	defer cancel()
	for agent, err := range r.service.Agents(ctx) {
		if err != nil {
			return fmt.Errorf("%w: %w", errService, err)
		}
		if id, err := uuid.FromBytes(agent.GetWorkspace().GetId()); err == nil {
			p.known[id] = agent.GetWorkspace().GetOrganizationName()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, organization := range r.workspaces {
		p.known[id] = organization
	}
	return nil
}

// add takes in a workspace of the list. One that cannot be decoded stays as it is.
func (p *reading) add(w *coder.Workspace, ok bool) {
	switch {
	case !ok:
		p.keep[w.ID] = struct{}{}
	case w.IsDeleted():
		p.gone[w.ID] = struct{}{}
		delete(p.seen, w.ID)
	default:
		p.seen[w.ID] = w
		delete(p.gone, w.ID)
	}
}

// lookForAbsent looks for the known workspaces that are not in the list, one by one.
func (r *Registrations) lookForAbsent(ctx context.Context, p *reading) error {
	var absent []uuid.UUID
	for id := range p.known {
		if !p.isDecided(id) {
			absent = append(absent, id)
		}
	}
	slices.SortFunc(absent, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	lookups := maxLookups
	if 2*len(absent) > len(p.known) {
		lookups = maxDoubtfulReads
	}
	for i, id := range absent {
		if i >= lookups {
			p.keep[id] = struct{}{}
			continue
		}
		w, err := r.coder.Workspace(ctx, id)
		switch {
		case err == nil:
			p.add(w, true)
		case errors.Is(err, coder.ErrNotFound):
			p.hidden[id] = struct{}{}
		case errors.Is(err, coder.ErrUnauthorized), ctx.Err() != nil:
			return err
		default:
			r.log.Debug("a workspace that is not in the list stays registered", "workspace", id, "error", err)
			p.keep[id] = struct{}{}
		}
	}
	return nil
}

func (p *reading) isDecided(id uuid.UUID) bool {
	_, seen := p.seen[id]
	_, gone := p.gone[id]
	_, hidden := p.hidden[id]
	_, keep := p.keep[id]
	return seen || gone || hidden || keep
}

// confirmHidden decides what is gone of the hidden workspaces: those that the sync before
// did not see either, if the token still sees others of their organizations. If so many
// are hidden that the token may have lost rights, nothing is gone.
func (r *Registrations) confirmHidden(ctx context.Context, p *reading) error {
	p.trusted = len(p.seen) > 0 && p.unreadable == 0 && 2*len(p.hidden) <= len(p.known)
	r.mu.Lock()
	before := r.hidden
	r.mu.Unlock()
	visible := make(map[string]bool)
	for id := range p.hidden {
		organization := p.known[id]
		sees, asked := visible[organization]
		if !asked && p.trusted {
			var err error
			if sees, err = r.seesOther(ctx, p, organization); err != nil {
				return err
			}
			visible[organization] = sees
		}
		if _, again := before[id]; p.trusted && sees && again {
			p.gone[id] = struct{}{}
		} else {
			p.keep[id] = struct{}{}
		}
	}
	return nil
}

// seesOther reads a known workspace of an organization again. It returns whether the token
// sees it.
func (r *Registrations) seesOther(ctx context.Context, p *reading, organization string) (bool, error) {
	var other uuid.UUID
	for id, w := range p.seen {
		_, known := p.known[id]
		if known && w.OrganizationName == organization && (other == uuid.Nil || slices.Compare(id[:], other[:]) < 0) {
			other = id
		}
	}
	if other == uuid.Nil {
		return false, nil
	}
	_, err := r.coder.Workspace(ctx, other)
	if errors.Is(err, coder.ErrUnauthorized) || ctx.Err() != nil {
		return false, err
	}
	return err == nil, nil
}

// apply has the service know what was read.
func (r *Registrations) apply(ctx context.Context, p *reading) error {
	var agents []*agentstatsv1.AgentRegistration
	var workspaces []*agentstatsv1.Workspace
	known := make(map[uuid.UUID]registered)
	organizations := make(map[uuid.UUID]string, len(p.seen))
	for id, w := range p.seen {
		delete(p.keep, id) // it could be decoded another time
		if !w.Build.IsDone() {
			p.keep[id] = struct{}{} // its agents are those of the build before
		}
		organizations[id] = w.OrganizationName
		regs, workspace := messagesOf(w)
		if len(regs) == 0 {
			workspaces = append(workspaces, workspace)
		}
		agents = append(agents, regs...)
		noteKnown(known, w)
	}
	ctx, cancel := context.WithTimeout(ctx, serviceTimeout)
	defer cancel()
	if !p.trusted {
		if _, err := r.service.Register(ctx, agents, workspaces); err != nil {
			return fmt.Errorf("%w: %w", errService, err)
		}
		r.noteRegistered(p, known, organizations)
		return p.doubt()
	}
	done, err := r.service.Sync(ctx, agents, workspaces, client.SyncOptions{
		ReadAt:         p.at,
		KeepWorkspaces: r.keptIn(p),
		Force:          true, // what is not in the list was looked for
	})
	if err != nil {
		return fmt.Errorf("%w: %w", errService, err)
	}
	r.metrics.removed.Add(float64(done.GetDeregistered()))
	r.noteRegistered(p, known, organizations)
	r.log.Debug("registrations are synced", "agents", len(agents), "workspaces", len(p.seen),
		"kept", len(p.keep), "removed", done.GetDeregistered(), "took", time.Since(p.at))
	return nil
}

// doubt returns why what was read is not trusted; nil: nothing is there, and nothing is
// known.
func (p *reading) doubt() error {
	switch {
	case p.unreadable > 0:
		return fmt.Errorf("%w: %d workspaces have no id that can be read", errDoubt, p.unreadable)
	case len(p.known) == 0:
		return nil
	case len(p.seen) == 0:
		return fmt.Errorf("%w: none of %d workspaces is visible; if they are not deleted, the user of the API token lacks the role Template Admin", errDoubt, len(p.known))
	}
	return fmt.Errorf("%w: %d of %d workspaces are not visible any more; if they are not deleted, the user of the API token has lost rights", errDoubt, len(p.hidden), len(p.known))
}

// keptIn returns the workspaces that stay as they are: also those whose agents were
// registered since the reading began.
func (r *Registrations) keptIn(p *reading) []uuid.UUID {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, known := range r.agents {
		if known.readAt.After(p.at) {
			p.keep[known.workspace] = struct{}{}
		}
	}
	return slices.Collect(maps.Keys(p.keep))
}

// noteRegistered remembers what a sync registered.
func (r *Registrations) noteRegistered(p *reading, known map[uuid.UUID]registered, organizations map[uuid.UUID]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, was := range r.agents {
		_, again := known[id]
		_, kept := p.keep[was.workspace]
		// What was registered meanwhile was read later.
		if !again && (kept || !p.trusted || was.readAt.After(p.at)) {
			known[id] = was
		}
	}
	for id, organization := range r.workspaces {
		if _, again := organizations[id]; again {
			continue
		}
		if _, kept := p.keep[id]; kept || !p.trusted {
			organizations[id] = organization
		}
	}
	r.agents, r.workspaces, r.hidden = known, organizations, nil
	if p.trusted {
		r.hidden = p.hidden
	}
	r.unknown.synced(p.at, known)
}
