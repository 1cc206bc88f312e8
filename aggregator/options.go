package aggregator

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Options are the knobs of an Aggregator. A zero field takes its default.
type Options struct {
	// ReportInterval is how often agents report, at least 1 s; default 30 s.
	// The byte gauges sum over it, or over 1 min if that is longer. Of an agent that
	// reports less often, as it is asked to under load, they have one report.
	ReportInterval time.Duration
	// SeriesTTL is how long series outlive the last report that had them, at
	// least twice the report interval; default 2 min or, if longer, that.
	SeriesTTL time.Duration
	// MaxSeries of all agents, the stats gauges, states and groups included;
	// default 2,000,000, which is some 700 MB. The stats gauges and states are
	// counted but never refused.
	MaxSeries int
	// MaxSeriesPerOwner that the agents of one user may forward; default a
	// quarter of MaxSeries.
	MaxSeriesPerOwner int
	// MaxSeriesPerAgent that one agent may forward; default 1,000, where agents
	// have some 50.
	MaxSeriesPerAgent int
	// MaxSeriesBytes of names and labels of the series that all agents forward,
	// and of their groups; default 512 MiB. A series of Coder's has some 90.
	MaxSeriesBytes int
	// MaxSeriesBytesPerOwner of the agents of one user; default a quarter of
	// MaxSeriesBytes.
	MaxSeriesBytesPerOwner int
	// MaxSeriesBytesPerAgent of one agent; default 1 MiB.
	MaxSeriesBytesPerAgent int
	// MaxFamilies that are not documented, of all agents; default 20,000. Each
	// costs 1 KB beside its series.
	MaxFamilies int
	// MaxFamiliesPerAgent that one agent may forward; default 200, where agents
	// have some 30.
	MaxFamiliesPerAgent int
	// GroupBy are the identity labels that series keep: any of agent_name,
	// template_name, username, workspace_name; empty or all four: no grouping.
	GroupBy []string
	// WorkspaceInfo has SetStates take agentstatsd_workspace_info, too.
	WorkspaceInfo bool
	// Expired is called with each agent whose series have all expired, as it sent no
	// report in time, and their number. It must not block. Default: nothing is.
	Expired func(id agent.ID, series int)
}

const (
	defaultReportInterval    = 30 * time.Second
	minReportInterval        = time.Second
	defaultSeriesTTL         = 2 * time.Minute
	defaultMaxSeries         = 2_000_000
	defaultMaxSeriesPerAgent = 1_000
	defaultMaxSeriesBytes    = 512 << 20
	defaultMaxBytesPerAgent  = 1 << 20
	defaultMaxFamilies       = 20_000
	defaultFamiliesPerAgent  = 200
	// ownersShare is the part of each shared limit that one owner may use, 1 in 4.
	ownersShare = 4
)

func (o Options) withDefaults() Options {
	if o.ReportInterval == 0 {
		o.ReportInterval = defaultReportInterval
	}
	if o.SeriesTTL == 0 {
		o.SeriesTTL = max(defaultSeriesTTL, 2*o.ReportInterval)
	}
	o.MaxSeries = cmp.Or(o.MaxSeries, defaultMaxSeries)
	o.MaxSeriesPerOwner = cmp.Or(o.MaxSeriesPerOwner, max(1, o.MaxSeries/ownersShare))
	o.MaxSeriesPerAgent = cmp.Or(o.MaxSeriesPerAgent, defaultMaxSeriesPerAgent)
	o.MaxSeriesBytes = cmp.Or(o.MaxSeriesBytes, defaultMaxSeriesBytes)
	o.MaxSeriesBytesPerOwner = cmp.Or(o.MaxSeriesBytesPerOwner, max(1, o.MaxSeriesBytes/ownersShare))
	o.MaxSeriesBytesPerAgent = cmp.Or(o.MaxSeriesBytesPerAgent, defaultMaxBytesPerAgent)
	o.MaxFamilies = cmp.Or(o.MaxFamilies, defaultMaxFamilies)
	o.MaxFamiliesPerAgent = cmp.Or(o.MaxFamiliesPerAgent, defaultFamiliesPerAgent)
	return o
}

func (o Options) validate() error {
	switch {
	case o.ReportInterval < minReportInterval:
		return fmt.Errorf("report interval: want at least %v, got %v", minReportInterval, o.ReportInterval)
	case o.SeriesTTL < 2*o.ReportInterval:
		return fmt.Errorf("series TTL: want at least twice the report interval of %v, got %v", o.ReportInterval, o.SeriesTTL)
	}
	for _, limit := range [...]struct {
		name  string
		value int
	}{
		{"max series", o.MaxSeries}, {"max series per owner", o.MaxSeriesPerOwner}, {"max series per agent", o.MaxSeriesPerAgent},
		{"max series bytes", o.MaxSeriesBytes}, {"max series bytes per owner", o.MaxSeriesBytesPerOwner},
		{"max series bytes per agent", o.MaxSeriesBytesPerAgent},
		{"max families", o.MaxFamilies}, {"max families per agent", o.MaxFamiliesPerAgent},
	} {
		if limit.value < 0 {
			return fmt.Errorf("%s: want at least 0, got %d", limit.name, limit.value)
		}
	}
	return nil
}

// keptLabels returns the identity labels that series keep.
func (o Options) keptLabels() (identityLabels, error) {
	if len(o.GroupBy) == 0 {
		return allLabels, nil
	}
	var keep identityLabels
	for _, name := range o.GroupBy {
		l, ok := identityLabel(name)
		if !ok {
			return 0, fmt.Errorf("%q is not a valid aggregation label; only one or more of %q are acceptable",
				name, strings.Join(identityNames[:], ", "))
		}
		keep |= l
	}
	return keep, nil
}
