package simulate

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

var (
	firstNames = []string{
		"alice", "bruno", "chen", "dana", "emeka", "fatima", "goran", "hana", "ines", "jonas", "kofi", "lena", "mateo",
		"nadia", "oskar", "priya", "quinn", "rosa", "sven", "tomoko", "uma", "viktor", "wen", "ximena", "yusuf", "zoe",
	}
	projects      = []string{"api", "web", "ml", "infra", "data", "mobile", "docs", "billing"}
	templates     = []string{"docker", "kubernetes", "aws-linux", "gpu-research", "windows"}
	organizations = []string{"default", "research"}
	// agentNames of a workspace with several agents. The third is a sub-agent.
	agentNames = []string{"main", "db", "devcontainer"}
	appSlugs   = []string{"code-server", "web-terminal", "jupyter"}

	// namespace of the ids that are the same in each run.
	namespace = uuid.MustParse("5e6ad7f2-53a4-4dc6-9d5b-1f8b9c1fd9f5")
	// prebuildsOwner owns the workspaces that nobody has claimed yet. The id is
	// coderd's.
	prebuildsOwner = uuid.MustParse("c42fdf75-3097-471c-8c33-fb52454d81c0")
)

// connectionTimeout is what templates have by default.
const connectionTimeout = 2 * time.Minute

// plannedAgent is one agent before it lives.
type plannedAgent struct {
	// number in the fleet, the same in each build of its workspace.
	number       int
	id           uuid.UUID
	token        string
	registration *agentstatsv1.AgentRegistration
	apps         []uuid.UUID
}

// plannedWorkspace is one workspace in one of its builds.
type plannedWorkspace struct {
	// number in the fleet, and of the build, from 0.
	number, build int
	id            uuid.UUID
	workspace     *agentstatsv1.Workspace
	// agents of the build; none while the workspace is stopped.
	agents []plannedAgent
	// firstAgent is the number of the first agent, agentCount how many there are
	// when the workspace is started.
	firstAgent, agentCount int
	// unreachable is true if the agents never connect.
	unreachable bool
}

// planner plans the workspaces of a fleet. Users, workspaces and templates
// depend on the fleet's name; agents, builds and tokens on the run's secret.
type planner struct {
	fleet        string
	metadataKeys int
	secret       []byte
}

func (p planner) stable(kind string, name any) uuid.UUID {
	return uuid.NewHash(sha256.New(), namespace, fmt.Appendf(nil, "%s/%s/%v", p.fleet, kind, name), 5)
}

func (p planner) fresh(kind, name string) uuid.UUID {
	return uuid.NewHash(sha256.New(), namespace, fmt.Appendf(p.secret[:len(p.secret):len(p.secret)], "/%s/%s", kind, name), 5)
}

// plan plans the first build of all workspaces: first those of the agents, then
// one for each unreachable agent.
func (p planner) plan(agents, unreachable int, now time.Time) []plannedWorkspace {
	var all []plannedWorkspace
	for planned := 0; planned < agents+unreachable; {
		w := plannedWorkspace{number: len(all), firstAgent: planned, agentCount: 1, unreachable: planned >= agents}
		if !w.unreachable {
			w.agentCount = min(agentsOfWorkspace(w.number), agents-planned)
		}
		planned += w.agentCount
		all = append(all, p.start(w, now))
	}
	return all
}

// start returns w in the build that it has the number of, which starts it.
func (p planner) start(w plannedWorkspace, now time.Time) plannedWorkspace {
	w = p.inBuild(w, agentstatsv1.Build_TRANSITION_START, now)
	w.agents = make([]plannedAgent, w.agentCount)
	for a := range w.agents {
		w.agents[a] = p.agent(w, a, now)
	}
	return w
}

// stop returns w in the build that it has the number of, which stops it.
func (p planner) stop(w plannedWorkspace, now time.Time) plannedWorkspace {
	w = p.inBuild(w, agentstatsv1.Build_TRANSITION_STOP, now)
	w.agents = nil
	return w
}

func (p planner) inBuild(w plannedWorkspace, transition agentstatsv1.Build_Transition, now time.Time) plannedWorkspace {
	template := templates[w.number%len(templates)]
	w.id = p.stable("workspace", w.number)
	w.workspace = &agentstatsv1.Workspace{
		Id:               idBytes(w.id),
		Name:             fmt.Sprintf("%s-%s-%d", p.fleet, projects[w.number%len(projects)], w.number),
		OwnerId:          idBytes(p.stable("user", w.number/workspacesPerUser)),
		OwnerUsername:    ownerName(w.number),
		OrganizationName: organizationOf(w.number),
		Template: &agentstatsv1.Template{
			Id:   idBytes(p.stable("template", template)),
			Name: template,
			// Now and then a build brings a new version.
			Version: versionName(w.number + w.build/4),
		},
		Build: &agentstatsv1.Build{
			Id:         idBytes(p.fresh("build", fmt.Sprintf("%d/%d", w.number, w.build))),
			CreatedAt:  timestamppb.New(now),
			Transition: transition,
		},
	}
	if w.isPrebuild() {
		w.workspace.Build.IsPrebuild = true
		w.workspace.OwnerId, w.workspace.OwnerUsername = idBytes(prebuildsOwner), "prebuilds"
	}
	return w
}

// isPrebuild reports whether nobody has claimed the workspace yet: its next build
// is the claim.
func (w *plannedWorkspace) isPrebuild() bool { return w.number%7 == 3 && w.build == 0 }

// agent plans the a-th agent of a workspace.
func (p planner) agent(w plannedWorkspace, a int, now time.Time) plannedAgent {
	number := w.firstAgent + a
	name := func(number int) string { return fmt.Sprintf("%d/%d", number, w.build) }
	agent := plannedAgent{number: number, id: p.fresh("agent", name(number)), token: p.fresh("token", name(number)).String()}
	agent.registration = &agentstatsv1.AgentRegistration{
		Id:                idBytes(agent.id),
		Name:              agentNames[a],
		CreatedAt:         timestamppb.New(now),
		ConnectionTimeout: durationpb.New(connectionTimeout),
		TokenSha256:       tokenHash(agent.token),
		Workspace:         w.workspace,
	}
	if a == 2 {
		agent.registration.ParentId = idBytes(p.fresh("agent", name(w.firstAgent)))
	}
	for n := range 1 + number%len(appSlugs) {
		app := p.fresh("app", fmt.Sprintf("%s/%d", name(number), n))
		agent.apps = append(agent.apps, app)
		agent.registration.Apps = append(agent.registration.Apps, &agentstatsv1.App{
			Id:          idBytes(app),
			Slug:        appSlugs[n],
			DisplayName: appSlugs[n],
			Health:      agentstatsv1.AppHealth_APP_HEALTH_INITIALIZING,
		})
	}
	// A third of the templates declares no keys.
	if number%3 != 2 || p.metadataKeys > maxUndeclaredKeys {
		for k := range p.metadataKeys {
			agent.registration.MetadataKeys = append(agent.registration.MetadataKeys, metadataKey(k))
		}
	}
	return agent
}

// agentsOfWorkspace gives every fifth workspace a second agent, and every
// tenth of them all a third.
func agentsOfWorkspace(w int) int {
	switch {
	case w%10 == 9:
		return 3
	case w%5 == 4:
		return 2
	}
	return 1
}

const workspacesPerUser = 3

// ownerName returns the name of the user that the w-th workspace is for.
func ownerName(w int) string {
	user := w / workspacesPerUser
	name := firstNames[user%len(firstNames)]
	if user >= len(firstNames) {
		name = fmt.Sprintf("%s%d", name, user/len(firstNames)+1)
	}
	return name
}

// organizationOf returns the organization of the w-th workspace's template.
func organizationOf(w int) string {
	return organizations[w%len(templates)%len(organizations)]
}

func versionName(w int) string { return fmt.Sprintf("v%d", 1+w%3) }

func idBytes(id uuid.UUID) []byte { return id[:] }

func tokenHash(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

// shortID identifies runs in logs.
func shortID(secret []byte) string {
	sum := sha256.Sum256(secret)
	return hex.EncodeToString(sum[:4])
}
