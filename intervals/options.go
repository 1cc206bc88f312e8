package intervals

import (
	"cmp"
	"fmt"
	"time"
)

// Options of Intervals. A zero field takes its default.
type Options struct {
	// ReportInterval of agents while the factor is 1; default 30 s.
	ReportInterval time.Duration
	// LongestInterval bounds the lengthened report interval; default twice the
	// ReportInterval. If it equals the ReportInterval, intervals are never lengthened.
	LongestInterval time.Duration
	// FlushInterval of metadata; default 5 s. A pending age up to it is no load.
	FlushInterval time.Duration
	// TargetCPU of a replica, as a share of its processors, above 0; default 0.7.
	TargetCPU float64
	// TargetPendingAge of the oldest metadata; default one and a half FlushIntervals,
	// longer than one.
	TargetPendingAge time.Duration
	// TargetFlush is the share of the time in which metadata is being written, above 0;
	// default 0.5.
	TargetFlush float64
	// CPU returns the CPU time of this process since its start; nil: that of the
	// operating system.
	CPU func() time.Duration
}

func (o Options) withDefaults() Options {
	o.ReportInterval = cmp.Or(o.ReportInterval, 30*time.Second)
	o.LongestInterval = cmp.Or(o.LongestInterval, 2*o.ReportInterval)
	o.FlushInterval = cmp.Or(o.FlushInterval, 5*time.Second)
	o.TargetCPU = cmp.Or(o.TargetCPU, 0.7)
	o.TargetPendingAge = cmp.Or(o.TargetPendingAge, o.FlushInterval+max(o.FlushInterval/2, 1))
	o.TargetFlush = cmp.Or(o.TargetFlush, 0.5)
	if o.CPU == nil {
		o.CPU = processCPU
	}
	return o
}

func (o Options) validate() error {
	switch {
	case o.ReportInterval <= 0:
		return fmt.Errorf("report interval: want above 0s, got %v", o.ReportInterval)
	case o.LongestInterval < o.ReportInterval:
		return fmt.Errorf("longest interval: want at least the report interval of %v, got %v", o.ReportInterval, o.LongestInterval)
	case o.FlushInterval <= 0:
		return fmt.Errorf("flush interval: want above 0s, got %v", o.FlushInterval)
	case o.TargetCPU <= 0 || o.TargetFlush <= 0:
		return fmt.Errorf("target CPU and target flush: want above 0, got %v and %v", o.TargetCPU, o.TargetFlush)
	case o.TargetPendingAge <= o.FlushInterval:
		return fmt.Errorf("target pending age: want above the flush interval of %v, got %v", o.FlushInterval, o.TargetPendingAge)
	}
	return nil
}

// maxFactor returns the highest factor that the LongestInterval allows.
func (o *Options) maxFactor() float64 {
	return min(factors[len(factors)-1], float64(o.LongestInterval)/float64(o.ReportInterval))
}

// Longest returns the longest report interval that a step leads to, at most limit.
// limit must be at least interval.
func Longest(interval, limit time.Duration) time.Duration {
	longest := interval
	for _, f := range factors {
		if d := time.Duration(f * float64(interval)); d <= limit {
			longest = d
		}
	}
	return longest
}
