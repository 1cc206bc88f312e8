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
	projects  = []string{"api", "web", "ml", "infra", "data", "mobile", "docs", "billing"}
	templates = []string{"docker", "kubernetes", "aws-linux", "gpu-research", "windows"}
	// agentNames of a workspace with several agents. The third is a sub-agent.
	agentNames = []string{"main", "db", "devcontainer"}
	appSlugs   = []string{"code-server", "web-terminal", "jupyter"}

	// namespace of the ids that are the same in each run.
	namespace = uuid.MustParse("5e6ad7f2-53a4-4dc6-9d5b-1f8b9c1fd9f5")
)

// plannedAgent is one agent before it lives.
type plannedAgent struct {
	id           uuid.UUID
	token        string
	registration *agentstatsv1.AgentRegistration
	apps         []uuid.UUID
}

// plan is a fleet before it lives.
type plan struct {
	agents     []plannedAgent
	workspaces []uuid.UUID
}

// newPlan plans the agents of a fleet. Users, workspaces and templates depend on
// the fleet's name; agents, builds and tokens on the run's secret.
func newPlan(o Options, secret []byte, now time.Time) plan {
	stable := func(kind string, name any) uuid.UUID {
		return uuid.NewHash(sha256.New(), namespace, fmt.Appendf(nil, "%s/%s/%v", o.Fleet, kind, name), 5)
	}
	fresh := func(kind string, name any) uuid.UUID {
		return uuid.NewHash(sha256.New(), namespace, fmt.Appendf(secret[:len(secret):len(secret)], "/%s/%v", kind, name), 5)
	}
	var p plan
	for w := 0; len(p.agents) < o.Agents; w++ {
		// Three workspaces a user, each of a project and a template.
		user, template := w/3, templates[w%len(templates)]
		username := firstNames[user%len(firstNames)]
		if user >= len(firstNames) {
			username = fmt.Sprintf("%s%d", username, user/len(firstNames)+1)
		}
		workspace := &agentstatsv1.Workspace{
			Id:               idBytes(stable("workspace", w)),
			Name:             fmt.Sprintf("%s-%s-%d", o.Fleet, projects[w%len(projects)], w),
			OwnerId:          idBytes(stable("user", user)),
			OwnerUsername:    username,
			OrganizationName: "simulated",
			Template: &agentstatsv1.Template{
				Id:      idBytes(stable("template", template)),
				Name:    template,
				Version: fmt.Sprintf("v%d", 1+w%3),
			},
			Build: &agentstatsv1.Build{
				Id:         idBytes(fresh("build", w)),
				CreatedAt:  timestamppb.New(now),
				Transition: agentstatsv1.Build_TRANSITION_START,
			},
		}
		p.workspaces = append(p.workspaces, stable("workspace", w))

		var main uuid.UUID
		for a := range min(agentsOfWorkspace(w), o.Agents-len(p.agents)) {
			i := len(p.agents)
			agent := plannedAgent{id: fresh("agent", i), token: fresh("token", i).String()}
			if a == 0 {
				main = agent.id
			}
			agent.registration = &agentstatsv1.AgentRegistration{
				Id:                idBytes(agent.id),
				Name:              agentNames[a],
				CreatedAt:         timestamppb.New(now),
				ConnectionTimeout: durationpb.New(2 * time.Minute),
				TokenSha256:       tokenHash(agent.token),
				Workspace:         workspace,
			}
			if a == 2 {
				agent.registration.ParentId = idBytes(main)
			}
			for n := range 1 + i%len(appSlugs) {
				app := fresh("app", fmt.Sprintf("%d/%d", i, n))
				agent.apps = append(agent.apps, app)
				agent.registration.Apps = append(agent.registration.Apps, &agentstatsv1.App{
					Id:          idBytes(app),
					Slug:        appSlugs[n],
					DisplayName: appSlugs[n],
					Health:      agentstatsv1.AppHealth_APP_HEALTH_INITIALIZING,
				})
			}
			// A third of the templates declares no keys.
			if i%3 != 2 || o.MetadataKeys > maxUndeclaredKeys {
				for k := range o.MetadataKeys {
					agent.registration.MetadataKeys = append(agent.registration.MetadataKeys, metadataKey(k))
				}
			}
			p.agents = append(p.agents, agent)
		}
	}
	return p
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

func (p plan) registrations() []*agentstatsv1.AgentRegistration {
	registrations := make([]*agentstatsv1.AgentRegistration, len(p.agents))
	for i := range p.agents {
		registrations[i] = p.agents[i].registration
	}
	return registrations
}

func idBytes(id uuid.UUID) []byte { return id[:] }

func tokenHash(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

// shortID tells runs apart in logs.
func shortID(secret []byte) string {
	sum := sha256.Sum256(secret)
	return hex.EncodeToString(sum[:4])
}
