package coder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
)

// Workspace is a workspace with its latest build.
type Workspace struct {
	ID               uuid.UUID
	Name             string
	OwnerID          uuid.UUID
	OwnerName        string
	OrganizationName string
	TemplateID       uuid.UUID
	TemplateName     string
	IsPrebuild       bool
	Build            Build
	// ReadAt is when it was asked for.
	ReadAt time.Time
}

// Build is a build of a workspace.
type Build struct {
	ID        uuid.UUID
	CreatedAt time.Time
	// Transition is start, stop or delete; Job is the state of the job, like running or
	// succeeded; Status is that of the workspace by the build, like deleted.
	Transition, Job, Status string
	TemplateVersionName     string
	// Agents are those of the build, sub-agents among them.
	Agents []Agent
}

// Agent is an agent of a build.
type Agent struct {
	ID uuid.UUID
	// ParentID is the agent that it is a sub-agent of; zero: none.
	ParentID          uuid.UUID
	Name              string
	CreatedAt         time.Time
	ConnectionTimeout time.Duration
	// Status is connecting, connected, disconnected or timeout.
	Status string
	// Lifecycle is a state like ready. StartedAt and ReadyAt are when it was starting, and
	// when that ended; zero: not yet.
	Lifecycle          string
	StartedAt, ReadyAt time.Time
	Apps               []App
	// Latencies are by the name of the region; empty: not known.
	Latencies map[string]Latency
}

// App is an app of an agent.
type App struct {
	ID                        uuid.UUID
	Slug, DisplayName, Health string
}

// Latency is that of an agent to a DERP region.
type Latency struct {
	Preferred bool
	Latency   time.Duration
}

// States that are compared.
const (
	TransitionStart  = "start"
	TransitionDelete = "delete"
	JobSucceeded     = "succeeded"
	statusDeleted    = "deleted"
)

// prebuildsOwner is the user who owns prebuilt workspaces until they are claimed.
var prebuildsOwner = uuid.MustParse("c42fdf75-3097-471c-8c33-fb52454d81c0")

// IsDone reports whether the job of the build has ended, in whichever way.
func (b *Build) IsDone() bool {
	return slices.Contains([]string{JobSucceeded, "failed", "canceled"}, b.Job)
}

// IsDeleted reports whether the workspace is deleted.
func (w *Workspace) IsDeleted() bool {
	return w.Build.Status == statusDeleted || w.Build.Transition == TransitionDelete && w.Build.Job == JobSucceeded
}

// CurrentAgents returns the agents of the workspace: those of its latest build, if that
// is a start whose job succeeded.
func (w *Workspace) CurrentAgents() []Agent {
	if w.Build.Transition != TransitionStart || w.Build.Job != JobSucceeded {
		return nil
	}
	return w.Build.Agents
}

// Pages is what a read of all workspaces came to.
type Pages struct {
	// Count is the number of all workspaces by the last page.
	Count int
	// Unreadable is the number of workspaces that could not be decoded, nor named.
	Unreadable int
}

// Workspaces reads all workspaces page by page, and yields each as often as it is on a
// page. Rows move between pages while users work: one may be on two pages, or on none.
// Pages overlap, so that a few deletions move none out of sight. A workspace that cannot
// be decoded is yielded with its id only, and ok is false.
func (c *Client) Workspaces(ctx context.Context, yield func(w *Workspace, ok bool)) (Pages, error) {
	var pages Pages
	for offset := 0; ; {
		size := c.pageSize()
		page, err := c.readPage(ctx, offset, size, yield)
		if errors.Is(err, errTooLarge) && size > 1 {
			c.setPageSize(size / 2)
			continue
		}
		if err != nil {
			return pages, fmt.Errorf("list workspaces: %w", err)
		}
		pages.Count, pages.Unreadable = page.count, pages.Unreadable+page.unreadable
		if page.rows == 0 || offset+page.rows >= page.count {
			return pages, nil
		}
		offset += max(1, page.rows-size/20)
	}
}

func (c *Client) pageSize() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.page
}

func (c *Client) setPageSize(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.page = n
}

// page is what a page had.
type page struct {
	rows, count, unreadable int
}

func (c *Client) readPage(ctx context.Context, offset, limit int, yield func(*Workspace, bool)) (p page, err error) {
	query := url.Values{"limit": {strconv.Itoa(limit)}, "offset": {strconv.Itoa(offset)}}
	err = c.get(ctx, "api/v2/workspaces", query, func(d *json.Decoder) (err error) {
		p, err = decodePage(d, time.Now(), yield)
		return err
	})
	return p, err
}

// decodePage decodes a page that was asked for at a time. It yields each workspace that
// has an id.
func decodePage(d *json.Decoder, at time.Time, yield func(*Workspace, bool)) (p page, err error) {
	err = decodeFields(d, map[string]func(*json.Decoder) error{
		"count": func(d *json.Decoder) error { return d.Decode(&p.count) },
		"workspaces": func(d *json.Decoder) error {
			return decodeElements(d, func(d *json.Decoder) error {
				w, err := decodeWorkspace(d, at)
				if err != nil && !isMisfit(err) {
					return err
				}
				p.rows++
				if w.ID == uuid.Nil {
					p.unreadable++
					return nil
				}
				yield(&w, err == nil)
				return nil
			})
		},
	})
	return p, err
}

// Workspace reads a workspace, also one that is deleted. If there is none, or it is not
// visible to the token, the error wraps ErrNotFound.
func (c *Client) Workspace(ctx context.Context, id uuid.UUID) (*Workspace, error) {
	var w Workspace
	err := c.get(ctx, "api/v2/workspaces/"+id.String(), url.Values{"include_deleted": {"true"}}, func(d *json.Decoder) (err error) {
		if w, err = decodeWorkspace(d, time.Now()); err != nil {
			return &decodeError{err}
		}
		return nil
	})
	var answer *statusError
	switch {
	case errors.As(err, &answer) && answer.status == goneStatus:
		w = Workspace{ID: id, Build: Build{Status: statusDeleted}}
	case err != nil:
		return nil, fmt.Errorf("read workspace %s: %w", id, err)
	case w.ID != id:
		return nil, fmt.Errorf("read workspace %s: got another one", id)
	}
	return &w, nil
}
