package operator

import (
	"context"
	"fmt"
	"strings"

	"github.com/coder/serpent"

	"github.com/coder/agentstatsd/optiontable"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func drainCommand() *serpent.Command {
	c := &connection{changes: true}
	var undo bool
	return &serpent.Command{
		Use:   "drain",
		Short: "Have one replica send its agents elsewhere, or take them again.",
		Long: "While it drains it is not ready, takes no new agents, and asks those that it has to connect elsewhere. It goes on serving scrapes. " +
			"It needs coderd's token. status shows how many agents are still connected.\n\n" +
			"  agentstatsd drain --address 10.0.0.3:2113\n  agentstatsd drain --undo --address 10.0.0.3:2113" + exitCodes,
		Options:    c.options(serpent.Option{Flag: "undo", Default: "false", Description: "End it.", Value: serpent.BoolOf(&undo)}),
		Middleware: optiontable.NoArguments,
		Handler: func(inv *serpent.Invocation) error {
			a, err := c.ask(inv)
			if err != nil {
				return err
			}
			defer a.close()
			if err := a.onlyOne(); err != nil {
				return err
			}
			answers, err := askAll(inv.Context(), a, func(ctx context.Context, r *replica) (*agentstatsv1.SetDrainingResponse, error) {
				return r.admin.SetDraining(ctx, &agentstatsv1.SetDrainingRequest{Draining: !undo})
			})
			if err != nil {
				return err
			}
			r := answers[0]
			switch {
			case c.json:
				return a.printMessage(inv.Stdout, r.value)
			case undo:
				return print(inv.Stdout, shown(r.label())+" takes agents again\n")
			}
			return print(inv.Stdout, fmt.Sprintf("%s drains: %s streams of agents were open\n", shown(r.label()), number(r.value.GetStreams())))
		},
	}
}

// onlyOne returns an error unless one replica is meant.
func (a *asked) onlyOne() error {
	if len(a.reached)+len(a.away) == 1 {
		return nil
	}
	var all []string
	for _, r := range append(a.reached, a.away...) {
		all = append(all, strings.TrimSpace(r.dial+" "+shown(r.self.GetName())))
	}
	return coded(exitFault, "want the --address of one replica, got %d: %s", len(all), strings.Join(all, ", "))
}
