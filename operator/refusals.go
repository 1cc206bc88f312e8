package operator

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/coder/serpent"

	"github.com/coder/agentstatsd/optiontable"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxRefusedAgents is how many agents ListRefusals has at most.
const maxRefusedAgents = 1000

func refusalsCommand() *serpent.Command {
	c := &connection{}
	var limit int64
	return &serpent.Command{
		Use:   "refusals",
		Short: "Show who was refused what, and why.",
		Long: "First the sums by template, owner and version of the agent since the replicas began, then the agents, the newest refusal first.\n\n" +
			"  agentstatsd refusals --limit 20" + exitCodes,
		Options: c.options(serpent.Option{
			Flag: "limit", Default: "100", Description: "Agents at most, and rows of each sum.", Value: optiontable.Within(&limit, 1, maxRefusedAgents),
		}),
		Middleware: optiontable.NoArguments,
		Handler: func(inv *serpent.Invocation) error {
			a, err := c.ask(inv)
			if err != nil {
				return err
			}
			defer a.close()
			answers, err := askAll(inv.Context(), a, func(ctx context.Context, r *replica) (*agentstatsv1.ListRefusalsResponse, error) {
				return r.admin.ListRefusals(ctx, &agentstatsv1.ListRefusalsRequest{Limit: int32(limit)})
			})
			if err != nil {
				return err
			}
			merged := mergeRefusals(answers, int(limit))
			if c.json {
				err = a.printMessage(inv.Stdout, merged)
			} else {
				err = print(inv.Stdout, refusalsText(merged, int(limit), time.Now()))
			}
			if err != nil {
				return err
			}
			return a.partial(true)
		},
	}
}

func refusalsText(m *agentstatsv1.ListRefusalsResponse, limit int, now time.Time) string {
	var parts []string
	for _, sums := range m.GetSums() {
		if len(sums.GetSums()) == 0 {
			continue
		}
		t := newTable(strings.ToUpper(sums.GetBy()), "ITEMS", "LAST", "REASONS")
		for _, s := range sums.GetSums()[:min(limit, len(sums.GetSums()))] {
			reasons := make([]string, len(s.GetReasons()))
			for i, r := range s.GetReasons() {
				reasons[i] = fmt.Sprintf("%s %s", r.GetName(), number(r.GetCount()))
			}
			t.row(cmp.Or(s.GetName(), "(not known)"), number(s.GetItems()), ago(now, s.GetLastAt()), strings.Join(reasons, ", "))
		}
		if others := sums.GetOthers(); others > 0 {
			t.row("(others)", number(others))
		}
		parts = append(parts, t.String())
	}
	if len(m.GetAgents()) == 0 && len(parts) == 0 {
		return "nobody was refused anything\n"
	}
	t := newTable("AGENT", "TEMPLATE", "VERSION", "REASON", "ITEMS", "LAST", "PROBLEM", "NAMES")
	for _, a := range m.GetAgents() {
		name := a.GetId() // of one that is not registered
		if a.GetName() != "" {
			name = agentName(a.GetOwner(), a.GetWorkspace(), a.GetName())
		}
		for _, r := range a.GetRefused() {
			t.row(name, a.GetTemplate(), a.GetVersion(), r.GetReason(), number(r.GetCount()), ago(now, r.GetAt()), r.GetProblem(), strings.Join(r.GetNames(), " "))
		}
	}
	return joinParts(append(parts, t.String()))
}
