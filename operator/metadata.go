package operator

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/coder/serpent"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func metadataCommand() *serpent.Command {
	c := &connection{}
	return &serpent.Command{
		Use:   "metadata OWNER/WORKSPACE[.AGENT]",
		Short: "Show the newest metadata of a workspace's agents.",
		Long: "Values are those that are in the database. One that waits to be written is named as pending.\n\n" +
			"  agentstatsd metadata ada/dev.main" + exitCodes,
		Options:    c.options(),
		Middleware: oneArgument("one workspace or agent"),
		Handler: func(inv *serpent.Invocation) error {
			a, err := c.ask(inv)
			if err != nil {
				return err
			}
			defer a.close()
			agents, err := a.describeWorkspace(inv.Context(), inv.Args[0])
			if err != nil {
				return err
			}
			if c.json {
				var d document
				if d, err = answersOf(a, agents); err == nil {
					err = printJSON(inv.Stdout, d)
				}
			} else {
				var parts []string
				for _, agent := range agents {
					s := agent.GetSummary()
					parts = append(parts, fmt.Sprintf("%s, %s\n%s", shown(agentName(s.GetOwner(), s.GetWorkspace(), s.GetName())), s.GetStatus(),
						cmp.Or(metadataText(agent, time.Now()), "no metadata\n")))
				}
				err = print(inv.Stdout, joinParts(parts))
			}
			if err != nil {
				return err
			}
			return a.partial(false)
		},
	}
}

// describeWorkspace returns the agents that a name means: those of a workspace, or one.
func (a *asked) describeWorkspace(ctx context.Context, name string) ([]*agentstatsv1.DescribeAgentResponse, error) {
	owner, workspace, isWorkspace := strings.Cut(name, "/")
	if !isWorkspace || strings.Contains(workspace, ".") {
		one, err := a.describe(ctx, name)
		return []*agentstatsv1.DescribeAgentResponse{one}, err
	}
	lists, err := askAll(ctx, a, func(ctx context.Context, r *replica) ([]*agentstatsv1.AgentSummary, error) {
		return allAgents(ctx, r.admin, &agentstatsv1.SearchAgentsRequest{Owner: owner, Query: name})
	})
	if err != nil {
		return nil, err
	}
	var all []*agentstatsv1.DescribeAgentResponse
	for _, agent := range mergeAgents(lists) {
		if agent.GetWorkspace() != workspace {
			continue // the name is a part of its own
		}
		one, err := a.describe(ctx, agent.GetId())
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	if len(all) == 0 {
		return nil, coded(exitFault, "no workspace with agents is named so: agentstatsd agents --owner %s lists those of its owner", shown(owner))
	}
	return all, nil
}
