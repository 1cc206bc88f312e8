package client

import (
	"cmp"
	"context"
	"log/slog"

	"github.com/coder/agentstatsd/client/internal/gather"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// addSamples has Collect add the samples of Gatherer. Half of the time of Collect is for
// the Gatherer, so that a report with its counts comes in time without the samples.
func (o *AgentOptions) addSamples() {
	if o.Gatherer == nil {
		return
	}
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	collect, wait := o.Collect, cmp.Or(o.CallbackTimeout, defaultCallbackTimeout)/2
	// Calls of Collect do not overlap.
	gatherers, failed := gather.New(o.Gatherer, wait, log), ""
	o.Collect = func(ctx context.Context) *agentstatsv1.Stats {
		stats := &agentstatsv1.Stats{}
		if collect != nil {
			if stats = collect(ctx); stats == nil {
				return nil
			}
		}
		families, _, err := gatherers.Gather(ctx, wait)
		stats.Metrics = append(stats.GetMetrics(), gather.Samples(families)...)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text != "" && text != failed {
			log.WarnContext(ctx, "gather samples", "error", err)
		}
		failed = text
		return stats
	}
}
