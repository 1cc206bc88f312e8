package codertest

import (
	"cmp"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/test/bufconn"
)

// Secret is in all that the bridge must not keep, log or send on.
const Secret = "MARKED-SECRET"

// Role is what the holder of a token may do.
type Role int

// The roles of tokens.
const (
	// TemplateAdmin sees all workspaces.
	TemplateAdmin Role = iota
	// Member sees none, and is not refused.
	Member
	// Expired is refused with 401.
	Expired
	// Forbidden is refused with 403.
	Forbidden
)

// REST is coderd's REST API over workspaces, which tests change while it is read.
type REST struct {
	// OnRequest is called before a request is answered; an Answer other than nil is the
	// answer. Set it before the first request.
	OnRequest func(*http.Request) *Answer
	// Older and Newer have the JSON of an older and of a newer Coder.
	Older, Newer bool
	// HidesDeleted: a deleted workspace is 404.
	HidesDeleted bool

	mu sync.Mutex
	// Guarded by mu.
	workspaces map[uuid.UUID]*Workspace
	deleted    map[uuid.UUID]*Workspace
	tokens     map[string]Token
	requests   map[string]int
}

// Token is what a token is good for.
type Token struct {
	Role      Role
	ExpiresAt time.Time
	// HidesExpiry: the API refuses to tell the expiry.
	HidesExpiry bool
	// Owner, unless empty, is whose workspaces alone are visible.
	Owner string
}

func (t Token) sees(w *Workspace) bool {
	return t.Role == TemplateAdmin && w != nil && (t.Owner == "" || t.Owner == w.Owner)
}

// Answer is an answer that a test gives in place of the API's.
type Answer struct {
	Status     int
	RetryAfter int
	Location   string
	Body       string
}

// NewREST makes a REST without workspaces and tokens.
func NewREST() *REST {
	return &REST{
		workspaces: make(map[uuid.UUID]*Workspace),
		deleted:    make(map[uuid.UUID]*Workspace),
		tokens:     make(map[string]Token),
		requests:   make(map[string]int),
	}
}

// Workspace is a workspace of the stand-in. Zero fields have defaults in the JSON.
type Workspace struct {
	ID           uuid.UUID
	Name, Owner  string
	Organization string
	IsPrebuild   bool
	Build        Build
}

// Build is the latest build of a workspace.
type Build struct {
	ID              uuid.UUID
	CreatedAt       time.Time
	Transition, Job string
	Agents          []WorkspaceAgent
}

// WorkspaceAgent is an agent of a build.
type WorkspaceAgent struct {
	ID, ParentID       uuid.UUID
	Name               string
	CreatedAt          time.Time
	Status, Lifecycle  string
	StartedAt, ReadyAt time.Time
	Apps               []App
	Latencies          map[string]Latency
}

// App is an app of an agent.
type App struct {
	ID                        uuid.UUID
	Slug, DisplayName, Health string
}

// Latency is that of an agent to a region.
type Latency struct {
	Preferred bool
	MS        float64
}

// Put adds or replaces workspaces. It owns them from then on.
func (r *REST) Put(workspaces ...*Workspace) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range workspaces {
		r.workspaces[w.ID] = w
	}
}

// Change changes a workspace in place.
func (r *REST) Change(id uuid.UUID, change func(*Workspace)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r.workspaces[id])
}

// Delete deletes a workspace.
func (r *REST) Delete(id uuid.UUID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.workspaces[id]
	delete(r.workspaces, id)
	w.Build = Build{ID: uuid.New(), CreatedAt: w.Build.CreatedAt.Add(time.Second), Transition: "delete", Job: "succeeded"}
	r.deleted[id] = w
}

// IDs returns the ids of the workspaces in the order of the list.
func (r *REST) IDs() []uuid.UUID {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []uuid.UUID
	for _, w := range r.listLocked() {
		ids = append(ids, w.ID)
	}
	return ids
}

// AgentIDs returns the ids of all agents of started workspaces.
func (r *REST) AgentIDs() map[uuid.UUID]struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := make(map[uuid.UUID]struct{})
	for _, w := range r.workspaces {
		if w.Build.Transition == "start" && w.Build.Job == "succeeded" {
			for _, a := range w.Build.Agents {
				ids[a.ID] = struct{}{}
			}
		}
	}
	return ids
}

// SetToken makes a token good for something.
func (r *REST) SetToken(token string, is Token) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tokens[token] = is
}

// Requests returns how many requests there were of a kind: list, workspace, agent, user, key.
func (r *REST) Requests(kind string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests[kind]
}

// Serve serves the API over HTTP in memory until the test ends. It returns what dials it
// at http://coder.test.
func (r *REST) Serve(t testing.TB) *http.Transport {
	listener := bufconn.Listen(256 << 10)
	server := &http.Server{Handler: r}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return listener.DialContext(ctx)
	}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		_ = server.Close()
		serving.Wait()
	})
	return transport
}

// TokenFile writes a token to a file, and returns its path.
func TokenFile(t testing.TB, token string) string {
	path := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(path, []byte(token+"\n"), 0o600))
	return path
}

// ServeHTTP implements http.Handler.
func (r *REST) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	path := strings.TrimPrefix(req.URL.Path, "/api/v2/")
	kind, id := "other", ""
	for prefix, is := range map[string]string{"workspaces/": "workspace", "workspaceagents/": "agent", "users/me/keys/": "key"} {
		if after, found := strings.CutPrefix(path, prefix); found {
			kind, id = is, after
		}
	}
	kind = cmp.Or(map[string]string{"workspaces": "list", "users/me": "user"}[path], kind)
	r.mu.Lock()
	r.requests[kind]++
	r.mu.Unlock()
	if r.OnRequest != nil {
		if a := r.OnRequest(req); a != nil {
			if a.RetryAfter > 0 {
				w.Header().Set("Retry-After", strconv.Itoa(a.RetryAfter))
			}
			if a.Location != "" {
				w.Header().Set("Location", a.Location)
			}
			w.WriteHeader(a.Status)
			_, _ = w.Write([]byte(a.Body))
			return
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	token, known := r.tokens[req.Header.Get("Coder-Session-Token")]
	switch {
	case !known || token.Role == Expired:
		answer(w, http.StatusUnauthorized, object{"message": "API key is invalid.", "detail": Secret})
	case token.Role == Forbidden:
		answer(w, http.StatusForbidden, object{"message": "Forbidden.", "detail": Secret})
	case kind == "list":
		r.serveListLocked(w, req, token)
	case kind == "workspace":
		parsed, _ := uuid.Parse(id)
		r.serveWorkspaceLocked(w, parsed, req.URL.Query().Get("include_deleted") == "true", token)
	case kind == "agent":
		parsed, _ := uuid.Parse(id)
		r.serveAgentLocked(w, parsed, token)
	case kind == "user":
		answer(w, http.StatusOK, object{"id": ownerID(token.Owner), "email": Secret, "roles": token.roles()})
	case kind == "key" && !token.HidesExpiry:
		answer(w, http.StatusOK, object{"id": id, "expires_at": token.ExpiresAt, "token_name": Secret})
	default:
		answer(w, http.StatusNotFound, object{"message": "Resource not found or you do not have access to this resource"})
	}
}

type object = map[string]any

func answer(w http.ResponseWriter, status int, body object) {
	recorded := httptest.NewRecorder()
	_ = json.NewEncoder(recorded).Encode(body)
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(recorded.Body.Bytes())
}

// listLocked returns the workspaces in the order of the API: running first, then by
// owner and name.
func (r *REST) listLocked() []*Workspace {
	list := make([]*Workspace, 0, len(r.workspaces))
	for _, w := range r.workspaces {
		list = append(list, w)
	}
	running := func(w *Workspace) int {
		if w.Build.Transition == "start" && w.Build.Job == "succeeded" {
			return 0
		}
		return 1
	}
	slices.SortFunc(list, func(a, b *Workspace) int {
		return cmp.Or(cmp.Compare(running(a), running(b)), cmp.Compare(a.Owner, b.Owner), cmp.Compare(a.Name, b.Name), slices.Compare(a.ID[:], b.ID[:]))
	})
	return list
}

func (r *REST) serveListLocked(w http.ResponseWriter, req *http.Request, token Token) {
	list := slices.DeleteFunc(r.listLocked(), func(w *Workspace) bool { return !token.sees(w) })
	count := len(list)
	offset, _ := strconv.Atoi(req.URL.Query().Get("offset"))
	list = list[min(max(offset, 0), len(list)):]
	if limit, _ := strconv.Atoi(req.URL.Query().Get("limit")); limit > 0 {
		list = list[:min(limit, len(list))]
	}
	workspaces := []object{}
	for _, ws := range list {
		workspaces = append(workspaces, r.json(ws))
	}
	answer(w, http.StatusOK, object{"workspaces": workspaces, "count": count})
}

func (r *REST) serveWorkspaceLocked(w http.ResponseWriter, id uuid.UUID, deleted bool, token Token) {
	ws := r.workspaces[id]
	if ws == nil && deleted && !r.HidesDeleted {
		ws = r.deleted[id]
	}
	switch {
	case ws == nil && (r.deleted[id] == nil || r.HidesDeleted), ws != nil && !token.sees(ws):
		answer(w, http.StatusNotFound, object{"message": "Resource not found or you do not have access to this resource"})
	case ws == nil:
		answer(w, http.StatusGone, object{"message": "Workspace was deleted."})
	default:
		answer(w, http.StatusOK, r.json(ws))
	}
}

func (r *REST) serveAgentLocked(w http.ResponseWriter, id uuid.UUID, token Token) {
	for _, ws := range r.workspaces {
		for i := range ws.Build.Agents {
			if a := &ws.Build.Agents[i]; a.ID == id && token.Role == TemplateAdmin {
				answer(w, http.StatusOK, r.agentJSON(a))
				return
			}
		}
	}
	answer(w, http.StatusNotFound, object{"message": "Resource not found or you do not have access to this resource"})
}

// json is the workspace as the API has it, with secrets where it has some.
func (r *REST) json(w *Workspace) object {
	resources := []object{{"type": "volume", "metadata": []object{{"key": "k", "value": Secret, "sensitive": true}}}}
	var agents []object
	for i := range w.Build.Agents {
		agents = append(agents, r.agentJSON(&w.Build.Agents[i]))
	}
	if agents != nil {
		resources = append(resources, object{"type": "container", "agents": agents})
	}
	organization := cmp.Or(w.Organization, Organization)
	status := map[string]string{"start": "running", "stop": "stopped", "delete": "deleted"}[w.Build.Transition]
	if w.Build.Job != "succeeded" {
		status = w.Build.Job
	}
	j := object{
		"id": w.ID, "name": w.Name, "owner_id": ownerID(w.Owner), "owner_name": w.Owner,
		"organization_id": ownerID(organization), "organization_name": organization,
		"template_id": TemplateID, "template_name": TemplateName, "template_icon": Secret,
		"last_used_at": w.Build.CreatedAt, "deleting_at": nil, "dormant_at": nil, "ttl_ms": nil,
		"latest_build": object{
			"id": w.Build.ID, "created_at": w.Build.CreatedAt, "build_number": 3, "transition": w.Build.Transition,
			"template_version_id": TemplateID, "template_version_name": TemplateVersion, "initiator_name": Secret,
			"job": object{"id": w.Build.ID, "status": w.Build.Job, "completed_at": nil, "error": Secret}, "status": status,
			"resources": resources,
		},
	}
	if !r.Older {
		j["is_prebuild"] = w.IsPrebuild
	}
	if r.Newer {
		j["is_prebuild_of"] = object{"secret": Secret}
		j["latest_build"].(object)["stages"] = []any{1, "two", nil, object{"three": []int{3}}}
	}
	return j
}

// The template of all workspaces, its version, and the organization of those that name none.
const (
	TemplateName    = "docker"
	TemplateVersion = "v7"
	Organization    = "coder"
)

// TemplateID is that of the template of all workspaces.
var TemplateID = uuid.MustParse("7e3a1c00-0000-4000-8000-000000000001")

// prebuilds is the user who owns prebuilt workspaces.
const prebuilds = "prebuilds"

func ownerID(name string) uuid.UUID {
	if name == prebuilds {
		return uuid.MustParse("c42fdf75-3097-471c-8c33-fb52454d81c0")
	}
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte(name))
}

func (r *REST) agentJSON(a *WorkspaceAgent) object {
	var apps []object
	for _, app := range a.Apps {
		apps = append(apps, object{"id": app.ID, "slug": app.Slug, "display_name": app.DisplayName, "health": app.Health, "url": Secret, "command": Secret})
	}
	j := object{
		"id": a.ID, "name": a.Name, "created_at": a.CreatedAt, "updated_at": a.CreatedAt,
		"status": cmp.Or(a.Status, "connected"), "lifecycle_state": cmp.Or(a.Lifecycle, "ready"),
		"connection_timeout_seconds": 120, "version": "v2.99.0", "api_version": "2.6", "instance_id": Secret,
		"environment_variables": object{"TOKEN": Secret}, "scripts": []object{{"script": Secret}}, "apps": apps,
	}
	if !a.StartedAt.IsZero() {
		j["started_at"] = a.StartedAt
	}
	if !a.ReadyAt.IsZero() {
		j["ready_at"] = a.ReadyAt
	}
	if a.Latencies != nil {
		latency := object{}
		for region, l := range a.Latencies {
			latency[region] = object{"preferred": l.Preferred, "latency_ms": l.MS}
		}
		j["latency"] = latency
	}
	if !r.Older {
		j["parent_id"] = nil
		if a.ParentID != uuid.Nil {
			j["parent_id"] = a.ParentID
		}
	}
	if r.Newer {
		j["connection_timeout_seconds"] = 120
		j["mood"] = object{"secret": []string{Secret}}
	}
	return j
}

// HasBuilt reports whether a workspace exists, and its latest build is done.
func (r *REST) HasBuilt(id uuid.UUID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.workspaces[id]
	return w != nil && w.Build.Job != "running"
}
