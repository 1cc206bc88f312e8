package operator

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/coder/serpent"

	"github.com/coder/agentstatsd/optiontable"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func configCommand() *serpent.Command {
	c := &connection{}
	var all bool
	return &serpent.Command{
		Use:   "config",
		Short: "Show which settings are in force, and where each was set.",
		Long: "Without --all those that are set. An option that is not the same at all replicas has a line for each value.\n\n" +
			"  agentstatsd config --all" + exitCodes,
		Options:    c.options(serpent.Option{Flag: "all", Default: "false", Description: "Show defaults, too.", Value: serpent.BoolOf(&all)}),
		Middleware: optiontable.NoArguments,
		Handler: func(inv *serpent.Invocation) error {
			a, err := c.ask(inv)
			if err != nil {
				return err
			}
			defer a.close()
			answers, err := askAll(inv.Context(), a, func(ctx context.Context, r *replica) (*agentstatsv1.GetConfigResponse, error) {
				return r.admin.GetConfig(ctx, &agentstatsv1.GetConfigRequest{})
			})
			if err != nil {
				return err
			}
			if c.json {
				err = a.printConfigs(inv, answers, all)
			} else {
				err = print(inv.Stdout, configText(answers, all))
			}
			if err != nil {
				return err
			}
			return a.partial(true)
		},
	}
}

func (a *asked) printConfigs(inv *serpent.Invocation, answers []answer[*agentstatsv1.GetConfigResponse], all bool) error {
	messages := make([]*agentstatsv1.GetConfigResponse, len(answers))
	for i, r := range answers {
		messages[i] = &agentstatsv1.GetConfigResponse{Hash: r.value.GetHash(), Options: inForce(r.value, all)}
	}
	doc, err := answersOf(a, messages)
	if err != nil {
		return err
	}
	return printJSON(inv.Stdout, doc)
}

// sourceDefault is where an option is from that nobody has set.
const sourceDefault = "default"

// inForce returns all options, or those that are set.
func inForce(m *agentstatsv1.GetConfigResponse, all bool) (options []*agentstatsv1.Option) {
	for _, o := range m.GetOptions() {
		if all || o.GetSource() != sourceDefault {
			options = append(options, o)
		}
	}
	return options
}

// configText returns the options of replicas, for people.
func configText(answers []answer[*agentstatsv1.GetConfigResponse], all bool) string {
	type setting struct{ flag, value, initial, source, change string }
	var order []setting
	first := make(map[string]int) // places of flags in the order
	replicas := make(map[setting][]string)
	for _, r := range answers {
		for _, o := range inForce(r.value, all) {
			s := setting{"--" + o.GetFlag(), o.GetValue(), o.GetDefaultValue(), o.GetSource(), "reload"}
			if o.GetNeedsRestart() {
				s.change = "restart"
			}
			if _, found := first[s.flag]; !found {
				first[s.flag] = len(first)
			}
			if replicas[s] == nil {
				order = append(order, s)
			}
			replicas[s] = append(replicas[s], r.label())
		}
	}
	slices.SortStableFunc(order, func(a, b setting) int { return cmp.Compare(first[a.flag], first[b.flag]) })
	t := newTable("OPTION", "VALUE", "DEFAULT", "SET BY", "CHANGE BY", "REPLICAS")
	for _, s := range order {
		at := "all"
		if len(replicas[s]) < len(answers) {
			at = strings.Join(replicas[s], ", ")
		}
		t.row(s.flag, s.value, s.initial, s.source, s.change, at)
	}
	if len(order) == 0 {
		return "all options are at their defaults\n"
	}
	return t.String()
}
