package operator

import (
	"context"
	"fmt"
	"time"

	"github.com/coder/serpent"

	"github.com/coder/agentstatsd/optiontable"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// pageSize is how many agents are asked for at once, as many as a page may have.
const pageSize = 1000

func agentsCommand() *serpent.Command {
	c := &connection{}
	var request agentstatsv1.SearchAgentsRequest
	return &serpent.Command{
		Use:   "agents",
		Short: "List the agents that are registered.",
		Long: "All filters have to match. SERIES and REFUSED are those of all replicas that are asked: no series are known of an agent " +
			"whose replica is not.\n\n" +
			"  agentstatsd agents --template docker --status connected" + exitCodes,
		Options: c.options(
			serpent.Option{Flag: "owner", Description: "Username of the owner.", Value: serpent.StringOf(&request.Owner)},
			serpent.Option{Flag: "template", Description: "Name of the template.", Value: serpent.StringOf(&request.Template)},
			serpent.Option{
				Flag: "status", Description: "Status of the connection.",
				Value: serpent.EnumOf(&request.Status, "connecting", "connected", "disconnected", "timeout"),
			},
			serpent.Option{
				Flag: "query", Description: "A part of the name of owner, workspace, agent or template, or an id.", Value: serpent.StringOf(&request.Query),
			},
		),
		Middleware: optiontable.NoArguments,
		Handler: func(inv *serpent.Invocation) error {
			a, err := c.ask(inv)
			if err != nil {
				return err
			}
			defer a.close()
			answers, err := askAll(inv.Context(), a, func(ctx context.Context, r *replica) ([]*agentstatsv1.AgentSummary, error) {
				return allAgents(ctx, r.admin, &request)
			})
			if err != nil {
				return err
			}
			agents := mergeAgents(answers)
			if c.json {
				err = a.printMessage(inv.Stdout, &agentstatsv1.SearchAgentsResponse{Agents: agents, Total: float64(len(agents))})
			} else {
				err = print(inv.Stdout, agentsText(agents, time.Now()))
			}
			if err != nil {
				return err
			}
			return a.partial(false)
		},
	}
}

// allAgents asks a replica for all pages of a search.
func allAgents(ctx context.Context, admin agentstatsv1.AdminServiceClient, search *agentstatsv1.SearchAgentsRequest) ([]*agentstatsv1.AgentSummary, error) {
	var all []*agentstatsv1.AgentSummary
	token := ""
	for {
		resp, err := admin.SearchAgents(ctx, &agentstatsv1.SearchAgentsRequest{
			Query: search.GetQuery(), Owner: search.GetOwner(), Template: search.GetTemplate(), Status: search.GetStatus(),
			PageSize: pageSize, PageToken: token,
		})
		if err != nil {
			return nil, err
		}
		all = append(all, resp.GetAgents()...)
		if token = resp.GetNextPageToken(); token == "" {
			return all, nil
		}
	}
}

// agentName is the name of an agent, OWNER/WORKSPACE.AGENT.
func agentName(owner, workspace, agent string) string {
	return fmt.Sprintf("%s/%s.%s", owner, workspace, agent)
}

func agentsText(agents []*agentstatsv1.AgentSummary, now time.Time) string {
	t := newTable("AGENT", "TEMPLATE", "STATUS", "LIFECYCLE", "REPLICA", "SERIES", "REFUSED", "SEEN")
	for _, a := range agents {
		t.row(agentName(a.GetOwner(), a.GetWorkspace(), a.GetName()), a.GetTemplate(), a.GetStatus(), a.GetLifecycle(), a.GetReplica(),
			optionalNumber(a.Series), number(a.GetRefused()), ago(now, a.GetLastSeenAt()))
	}
	return t.String()
}
