package client

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxLoggedForwarded bounds the names of forwarded families that were logged.
const maxLoggedForwarded = 10_000

// logGatherError logs an error of the Gatherer unless it was logged last time.
func (p *Pusher) logGatherError(ctx context.Context, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != p.gatherError {
		p.log.WarnContext(ctx, "some families were not gathered", "error", err)
	}
	p.gatherError = text
}

// logForwarded logs the families with series of agents, unless they were logged before.
func (p *Pusher) logForwarded(ctx context.Context) {
	var names []string
	series, isNew := 0, false
	for _, f := range p.newest.forwarded {
		series += f.count
		names = append(names, f.family)
		if !p.loggedForwarded[f.family] && len(p.loggedForwarded) < maxLoggedForwarded {
			p.loggedForwarded[f.family], isNew = true, true
		}
	}
	if isNew {
		attrs := []any{"families", names, "series", series}
		if slices.ContainsFunc(names, isOptional) {
			attrs = append(attrs, "hint", hintOptional)
		}
		p.log.WarnContext(ctx, "series of agents are not pushed: the service has them from agents or relays", attrs...)
	}
}

// hintOptional is of the families that isOptional names.
const hintOptional = "once the service has them: CODER_PROMETHEUS_COLLECT_AGENT_STATS=false of coderd turns off all but coderd_agents_*"

// isOptional reports whether coderd has an option for a family of agents. Those that it
// makes of its database, coderd_agents_*, it always has.
func isOptional(family string) bool { return !strings.HasPrefix(family, "coderd_agents_") }

// notifyRefused calls OnRefused, by run, and logs what else is not served, if that
// changed.
func (p *Pusher) notifyRefused(ctx context.Context, refused []*agentstatsv1.FamilyRefusal, count int64, run func(func()) bool) {
	slices.SortStableFunc(refused, func(a, b *agentstatsv1.FamilyRefusal) int {
		return cmp.Or(cmp.Compare(a.GetName(), b.GetName()), cmp.Compare(a.GetReason(), b.GetReason()))
	})
	var all, logged strings.Builder
	var names []string
	others := count - int64(len(p.newest.forwarded))
	if count > 0 {
		fmt.Fprint(&all, count)
	}
	if others > 0 {
		fmt.Fprint(&logged, others)
	}
	for _, r := range refused {
		text := fmt.Sprintf(" %q %q", r.GetName(), r.GetReason())
		all.WriteString(text)
		if r.GetReason() != reasonForwarded {
			logged.WriteString(text)
			names = append(names, r.GetName())
		}
	}
	if logged.String() != p.loggedRefused {
		p.loggedRefused = logged.String()
		p.log.WarnContext(ctx, "families that are refused have changed", "count", others, "names", names)
	}
	if all.String() != p.lastRefused && (p.opts.OnRefused == nil || run(func() { p.opts.OnRefused(refused, count) })) {
		p.lastRefused = all.String()
	}
}
