package intervals

import (
	"cmp"
	"fmt"
	"time"
)

// Options of Intervals. A zero field takes its default.
type Options struct {
	// MaxFactor is the highest factor, 1 to 4; default 4. With 1 intervals are never
	// lengthened.
	MaxFactor float64
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
	o.MaxFactor = cmp.Or(o.MaxFactor, MaxFactor)
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
	case !(o.MaxFactor >= 1 && o.MaxFactor <= MaxFactor):
		return fmt.Errorf("highest factor: want 1 to %v, got %v", MaxFactor, o.MaxFactor)
	case o.FlushInterval <= 0:
		return fmt.Errorf("flush interval: want above 0s, got %v", o.FlushInterval)
	case o.TargetCPU <= 0 || o.TargetFlush <= 0:
		return fmt.Errorf("target CPU and target flush: want above 0, got %v and %v", o.TargetCPU, o.TargetFlush)
	case o.TargetPendingAge <= o.FlushInterval:
		return fmt.Errorf("target pending age: want above the flush interval of %v, got %v", o.FlushInterval, o.TargetPendingAge)
	}
	return nil
}
