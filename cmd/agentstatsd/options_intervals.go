package main

import (
	"time"

	"github.com/coder/serpent"

	"github.com/coder/agentstatsd/intervals"
)

// intervalOptions say when the intervals of agents are lengthened.
func (c *config) intervalOptions() serpent.OptionSet {
	return serpent.OptionSet{
		{
			Description: "Lengthen the report and metadata intervals of agents while a replica is over a target load: up to 4 times, " +
				"to half of --series-ttl at most, one step a minute, and back. The same on all replicas.",
			Flag: "adaptive-intervals", Env: "AGENTSTATSD_ADAPTIVE_INTERVALS", YAML: "adaptive_intervals",
			Default: "true", Value: serpent.BoolOf(&c.adaptiveIntervals), Group: &groupAgents,
		},
		{
			Description: "CPU that a replica may use for long, in percent of its processors, before intervals are lengthened.",
			Flag:        "target-cpu-percent", Env: "AGENTSTATSD_TARGET_CPU_PERCENT", YAML: "target_cpu_percent",
			Default: "70", Value: within(&c.targetCPUPercent, 1, 100), Group: &groupAgents,
		},
		{
			Description: "Time that metadata may be pending for long before intervals are lengthened: above --metadata-flush-interval. 0: one and a half of those.",
			Flag:        "target-pending-age", Env: "AGENTSTATSD_TARGET_PENDING_AGE", YAML: "target_pending_age",
			Default: "0s", Value: notBelow(&c.targetPendingAge, 0), Group: &groupAgents,
		},
		{
			Description: "Part of the time, in percent, in which metadata may be being written for long before intervals are lengthened.",
			Flag:        "target-flush-percent", Env: "AGENTSTATSD_TARGET_FLUSH_PERCENT", YAML: "target_flush_percent",
			Default: "50", Value: within(&c.targetFlushPercent, 1, 100), Group: &groupAgents,
		},
	}
}

// longestInterval returns what intervals of agents may be lengthened to, at least the
// report interval. A series outlives one report that is lost, and a stream is not taken
// for idle.
func (c *config) longestInterval() time.Duration {
	if !c.adaptiveIntervals {
		return c.reportInterval
	}
	limit := c.seriesTTL / 2
	if c.agentIdleTimeout != 0 {
		limit = min(limit, c.agentIdleTimeout/2)
	}
	return max(c.reportInterval, min(limit, intervals.MaxFactor*c.reportInterval))
}
