package main

import (
	"github.com/coder/serpent"
)

// pushOptions are what instances of coderd may push.
func (c *config) pushOptions() serpent.OptionSet {
	return serpent.OptionSet{
		{
			Description: "Instances of coderd whose families are kept apart; of more, those that are gone the longest are merged into totals.",
			Flag:        "max-coderd-instances", Env: "AGENTSTATSD_MAX_CODERD_INSTANCES", YAML: "max_coderd_instances",
			Default: "256", Value: atLeast(&c.maxCoderdInstances, 1), Group: &groupPushes,
		},
		{
			Description: "Series of one instance of coderd, each bucket and each KiB of labels counted as one; series beyond are refused.",
			Flag:        "max-pushed-series", Env: "AGENTSTATSD_MAX_PUSHED_SERIES", YAML: "max_series",
			Default: "200000", Value: atLeast(&c.maxPushedSeries, 1), Group: &groupPushes,
		},
		{
			Description: "Series of all instances of coderd that are alive, counted alike; series beyond are refused. " +
				"When those that are gone take up more, they are merged into totals.",
			Flag: "max-pushed-series-total", Env: "AGENTSTATSD_MAX_PUSHED_SERIES_TOTAL", YAML: "max_series_total",
			Default: "2000000", Value: atLeast(&c.maxPushedSeriesTotal, 1), Group: &groupPushes,
		},
		{
			Description: "Families of one snapshot of an instance of coderd; families beyond are refused.",
			Flag:        "max-pushed-families", Env: "AGENTSTATSD_MAX_PUSHED_FAMILIES", YAML: "max_families",
			Default: "2000", Value: atLeast(&c.maxPushedFamilies, 1), Group: &groupPushes,
		},
		{
			Description: "Largest snapshot of an instance of coderd, in bytes, over all its parts.",
			Flag:        "max-push-bytes", Env: "AGENTSTATSD_MAX_PUSH_BYTES", YAML: "max_bytes",
			Default: "64MiB", Value: bytesAtLeast(&c.maxPushBytes, 64<<10), Group: &groupPushes,
		},
		{
			Description: "What is stored of one instance of coderd, compressed, in bytes; series beyond are refused.",
			Flag:        "max-push-row-bytes", Env: "AGENTSTATSD_MAX_PUSH_ROW_BYTES", YAML: "max_row_bytes",
			Default: "64MiB", Value: bytesAtLeast(&c.maxPushRowBytes, 64<<10), Group: &groupPushes,
		},
		{
			Description: "Largest value of a label that an instance of coderd pushes, in bytes; series beyond are refused. Parameters of templates have up to 32 KiB.",
			Flag:        "max-pushed-label-value-bytes", Env: "AGENTSTATSD_MAX_PUSHED_LABEL_VALUE_BYTES", YAML: "max_label_value_bytes",
			Default: "32KiB", Value: bytesAtLeast(&c.maxPushedValueBytes, 1), Group: &groupPushes,
		},
		{
			Description: "Bytes of all names and values of labels of a series that an instance of coderd pushes; series beyond are refused.",
			Flag:        "max-pushed-labels-bytes", Env: "AGENTSTATSD_MAX_PUSHED_LABELS_BYTES", YAML: "max_labels_bytes",
			Default: "40KiB", Value: bytesAtLeast(&c.maxPushedLabelsBytes, 1), Group: &groupPushes,
		},
		{
			Description: "How the instances' values of a pushed family become one, as name=sum, max, min, sticky or newest, where what docs/metrics.md says is wrong. " +
				"Of counters, histograms and summaries all but sum mean that each instance has the whole. Can be given several times. The same on all replicas.",
			Flag: "push-merge", Env: "AGENTSTATSD_PUSH_MERGE", YAML: "merge",
			Value: serpent.StringArrayOf(&c.pushMerge), Group: &groupPushes,
		},
		{
			Description: "Bytes in memory of all snapshots of instances of coderd that are being received; more are refused until there is room.",
			Flag:        "max-pushes-bytes", Env: "AGENTSTATSD_MAX_PUSHES_BYTES", YAML: "max_all_bytes",
			Default: "64MiB", Value: bytesAtLeast(&c.maxPushesBytes, 1<<20), Group: &groupPushes,
		},
	}
}
