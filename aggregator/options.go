package aggregator

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Options are the knobs of an aggregator. Zero values stand for the defaults.
type Options struct {
	// ReportInterval is how often agents report, at least 1 s; default 30 s.
	// The byte gauges sum over it, or over 1 min if that is longer.
	ReportInterval time.Duration
	// SeriesTTL is how long series outlive the last report that had them, at
	// least twice the report interval; default 2 min or, if longer, that.
	SeriesTTL time.Duration
	// MaxSeries that are held of all agents, the stats gauges, states and groups
	// included; default 2,000,000, which is some 700 MB. States are counted but
	// never refused.
	MaxSeries int
	// MaxSeriesPerAgent that one agent may forward; default 1,000, where agents
	// have some 50.
	MaxSeriesPerAgent int
	// GroupBy are the identity labels that series keep: any of agent_name,
	// template_name, username, workspace_name; empty or all four: no grouping.
	GroupBy []string
}

const (
	defaultReportInterval    = 30 * time.Second
	minReportInterval        = time.Second
	defaultSeriesTTL         = 2 * time.Minute
	defaultMaxSeries         = 2_000_000
	defaultMaxSeriesPerAgent = 1_000
)

func (o Options) withDefaults() Options {
	if o.ReportInterval == 0 {
		o.ReportInterval = defaultReportInterval
	}
	if o.SeriesTTL == 0 {
		o.SeriesTTL = max(defaultSeriesTTL, 2*o.ReportInterval)
	}
	if o.MaxSeries == 0 {
		o.MaxSeries = defaultMaxSeries
	}
	if o.MaxSeriesPerAgent == 0 {
		o.MaxSeriesPerAgent = defaultMaxSeriesPerAgent
	}
	return o
}

// validate returns the identity labels that series keep.
func (o Options) validate() (identityLabels, error) {
	switch {
	case o.ReportInterval < minReportInterval:
		return 0, fmt.Errorf("report interval %v is below %v", o.ReportInterval, minReportInterval)
	case o.SeriesTTL < 2*o.ReportInterval:
		return 0, fmt.Errorf("series TTL %v is below twice the report interval %v", o.SeriesTTL, o.ReportInterval)
	case o.MaxSeries < 0:
		return 0, errors.New("the limit of series is negative")
	case o.MaxSeriesPerAgent < 0:
		return 0, errors.New("the limit of series per agent is negative")
	}
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
