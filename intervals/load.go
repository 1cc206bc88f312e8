package intervals

import (
	"runtime"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// loadWindow is the time over which loads are averaged.
const loadWindow = 30 * time.Second

// sample is one measurement.
type sample struct {
	at time.Time
	// cpu and flushing are totals since the start of the process.
	cpu, flushing time.Duration
	oldest        time.Duration // how long the oldest entry is pending
}

// meter has the samples of the newest loadWindow.
type meter struct{ samples []sample }

// add adds a sample, and removes those that are too old.
func (m *meter) add(s sample) {
	first := 0
	for first < len(m.samples) && s.at.Sub(m.samples[first].at) > loadWindow {
		first++
	}
	m.samples = append(m.samples[:0], m.samples[first:]...)
	m.samples = append(m.samples, s)
}

// load returns the means over the window; 0 if there are less than two samples.
func (m *meter) load(o *Options) (l agent.Load) {
	if len(m.samples) < 2 {
		return l
	}
	first, last := &m.samples[0], &m.samples[len(m.samples)-1]
	elapsed := last.at.Sub(first.at).Seconds()
	if elapsed <= 0 {
		return l
	}
	l.CPU = max(0, (last.cpu-first.cpu).Seconds()) / elapsed / float64(runtime.GOMAXPROCS(0)) / o.TargetCPU
	l.Flush = max(0, (last.flushing-first.flushing).Seconds()) / elapsed / o.TargetFlush
	var late time.Duration
	for _, s := range m.samples[1:] {
		// An entry is pending for up to a flush interval, whatever the load.
		late += max(0, s.oldest-o.FlushInterval)
	}
	l.PendingAge = late.Seconds() / float64(len(m.samples)-1) / (o.TargetPendingAge - o.FlushInterval).Seconds()
	return l
}
