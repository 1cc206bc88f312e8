package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/coder/serpent"

	"github.com/coder/agentstatsd/optiontable"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxCardinalityRows is how many rows GetCardinality has at most.
const maxCardinalityRows = 10_000

func cardinalityCommand() *serpent.Command {
	c := &connection{}
	var request agentstatsv1.GetCardinalityRequest
	var limit int64
	var cost bool
	var whatIf []string
	return &serpent.Command{
		Use:   "cardinality",
		Short: "Show what agents' series are of, and what they cost.",
		Long: "Series are counted in the memory of all replicas that are asked, and added. With --cost it shows what families take, and with --what-if " +
			"what a scrape would have of each if agents' series were grouped by other labels.\n\n" +
			"  agentstatsd cardinality --by agent --limit 10\n" +
			"  agentstatsd cardinality --by value --label path\n" +
			"  agentstatsd cardinality --what-if username,template_name" + exitCodes,
		Options: c.options(
			serpent.Option{
				Flag: "by", Default: "family", Description: "What is counted by.",
				Value: serpent.EnumOf(&request.By, "family", "label", "value", "template", "owner", "workspace", "agent"),
			},
			serpent.Option{
				Flag: "label", Description: "With --by value: only values of this label.", Value: serpent.StringOf(&request.Label),
			},
			serpent.Option{
				Flag: "family", Description: "Only series of this family.", Value: serpent.StringOf(&request.Family),
			},
			serpent.Option{Flag: "limit", Default: "100", Description: "Rows at most.", Value: optiontable.Within(&limit, 1, maxCardinalityRows)},
			serpent.Option{Flag: "cost", Default: "false", Description: "Show bytes in memory and series of a scrape, by family.", Value: serpent.BoolOf(&cost)},
			serpent.Option{
				Flag: "what-if", Description: "Labels of --prometheus-aggregate-agent-stats-by to try; implies --cost.", Value: serpent.StringArrayOf(&whatIf),
			},
		),
		Middleware: optiontable.NoArguments,
		Handler: func(inv *serpent.Invocation) error {
			switch cost = cost || len(whatIf) > 0; {
			case request.GetLabel() != "" && request.GetBy() != "value":
				return errors.New("--label needs --by value")
			case cost && (request.GetBy() != "family" || request.GetFamily() != ""):
				return errors.New("--cost and --what-if are by family, of all families")
			}
			a, err := c.ask(inv)
			if err != nil {
				return err
			}
			defer a.close()
			if cost {
				err = a.printCost(inv, whatIf, int(limit))
			} else {
				err = a.printCardinality(inv, &request, int(limit))
			}
			if err != nil {
				return err
			}
			return a.partial(true)
		},
	}
}

// printCardinality asks for all rows, as the largest of all replicas together need not be
// among the largest of each.
func (a *asked) printCardinality(inv *serpent.Invocation, request *agentstatsv1.GetCardinalityRequest, limit int) error {
	request.Limit = maxCardinalityRows
	answers, err := askAll(inv.Context(), a, func(ctx context.Context, r *replica) (*agentstatsv1.GetCardinalityResponse, error) {
		return r.admin.GetCardinality(ctx, request)
	})
	if err != nil {
		return err
	}
	merged, unknown := mergeCardinality(answers)
	rows := merged.GetGroup().GetRows()
	merged.Group.Rows = rows[:min(limit, len(rows))]
	if a.json {
		return a.printMessage(inv.Stdout, merged)
	}
	text := fmt.Sprintf("%s series of %s agents, %s names with their own labels\n\n", number(merged.GetSeries()), number(merged.GetAgents()), number(merged.GetDescriptors()))
	t := newTable(strings.ToUpper(cmp.Or(merged.GetGroup().GetLabel(), merged.GetGroup().GetBy())), "SERIES", "SHARE", "GROWTH/MIN")
	for _, row := range merged.GetGroup().GetRows() {
		t.row(row.GetName(), number(row.GetSeries()), fmt.Sprintf("%.1f %%", 100*row.GetSeries()/max(1, merged.GetSeries())), optionalNumber(row.Growth))
	}
	text += t.String()
	if left := merged.GetGroup().GetTotal() - float64(len(merged.GetGroup().GetRows())); left > 0 {
		text += fmt.Sprintf("and %s more\n", number(left))
	}
	if unknown > 0 {
		text += fmt.Sprintf("a replica has more than %d: a row may have up to %s series more, and rows of fewer are not all known\n", maxCardinalityRows, number(unknown))
	}
	return print(inv.Stdout, text)
}

// mergeCardinality adds the counts of replicas, whose series differ. A replica that has
// more rows than it says may have up to unknown series more of each row.
func mergeCardinality(answers []answer[*agentstatsv1.GetCardinalityResponse]) (merged *agentstatsv1.GetCardinalityResponse, unknown float64) {
	merged = &agentstatsv1.GetCardinalityResponse{Group: &agentstatsv1.CardinalityGroup{}}
	var groups []answer[[]*agentstatsv1.CardinalityRow]
	most := 0.0
	for _, r := range answers {
		v := r.value
		merged.Series += v.GetSeries()
		merged.Descriptors += v.GetDescriptors()
		merged.Agents += v.GetAgents()
		group := v.GetGroup()
		merged.Group.By, merged.Group.Label = group.GetBy(), group.GetLabel()
		rows := group.GetRows()
		groups = append(groups, answer[[]*agentstatsv1.CardinalityRow]{r.replica, rows})
		if n := len(rows); n > 0 && float64(n) < group.GetTotal() {
			if group.GetBy() != "agent" { // of which one replica has all series
				unknown += rows[n-1].GetSeries()
			}
			most = max(most, group.GetTotal())
		}
	}
	rows := mergeByKey(groups, func(row *agentstatsv1.CardinalityRow) string { return row.GetId() + " " + row.GetName() },
		func(a, b *agentstatsv1.CardinalityRow) *agentstatsv1.CardinalityRow {
			a.Series += b.GetSeries()
			if a.Growth != nil && b.Growth != nil {
				sum := a.GetGrowth() + b.GetGrowth()
				a.Growth = &sum
			} else {
				a.Growth = nil
			}
			return a
		})
	slices.SortStableFunc(rows, func(a, b *agentstatsv1.CardinalityRow) int {
		return cmp.Or(cmp.Compare(b.GetSeries(), a.GetSeries()), cmp.Compare(a.GetName(), b.GetName()))
	})
	merged.Group.Rows, merged.Group.Total = rows, max(most, float64(len(rows)))
	return merged, unknown
}

func (a *asked) printCost(inv *serpent.Invocation, whatIf []string, limit int) error {
	answers, err := askAll(inv.Context(), a, func(ctx context.Context, r *replica) (*agentstatsv1.GetCostResponse, error) {
		return r.admin.GetCost(ctx, &agentstatsv1.GetCostRequest{WhatIfLabels: whatIf})
	})
	if err != nil {
		return err
	}
	merged := mergeCost(answers)
	all := merged.GetFamilies()
	merged.Families = all[:min(limit, len(all))]
	if a.json {
		return a.printMessage(inv.Stdout, merged)
	}
	columns := []string{"FAMILY", "SERIES", "MEMORY", "SERVED"}
	if len(whatIf) > 0 {
		columns = append(columns, "WHAT IF")
	}
	t := newTable(columns...)
	row := func(f *agentstatsv1.FamilyCost) {
		t.row(f.GetFamily(), number(f.GetSeries()), size(f.GetBytes()), number(f.GetServed()), optionalNumber(f.WhatIfServed))
	}
	sum := &agentstatsv1.FamilyCost{Family: "(all)"}
	for _, f := range all {
		sum = mergeFamilyCost(sum, f)
	}
	for _, f := range merged.GetFamilies() {
		row(f)
	}
	row(sum)
	by := "every label of agents, as nothing is grouped"
	if labels := merged.GetLabels(); len(labels) > 0 {
		by = strings.Join(labels, ", ")
	}
	return print(inv.Stdout, fmt.Sprintf("served by %s\n\n%s", shown(by), t.String()))
}

// mergeCost adds what families take at replicas.
func mergeCost(answers []answer[*agentstatsv1.GetCostResponse]) *agentstatsv1.GetCostResponse {
	merged := &agentstatsv1.GetCostResponse{}
	var families []answer[[]*agentstatsv1.FamilyCost]
	for _, r := range answers {
		merged.Labels = r.value.GetLabels()
		families = append(families, answer[[]*agentstatsv1.FamilyCost]{r.replica, r.value.GetFamilies()})
	}
	merged.Families = mergeByKey(families, (*agentstatsv1.FamilyCost).GetFamily, mergeFamilyCost)
	slices.SortStableFunc(merged.Families, func(a, b *agentstatsv1.FamilyCost) int { return cmp.Compare(b.GetBytes(), a.GetBytes()) })
	return merged
}

func mergeFamilyCost(a, b *agentstatsv1.FamilyCost) *agentstatsv1.FamilyCost {
	a.Series += b.GetSeries()
	a.Bytes += b.GetBytes()
	a.Served += b.GetServed()
	if b.WhatIfServed != nil {
		sum := a.GetWhatIfServed() + b.GetWhatIfServed()
		a.WhatIfServed = &sum
	}
	return a
}
