package aggregator

import "runtime"

// fetchSeries reads what the report will touch of the agent's series, one kind at a time. So the processor
// fetches that of many series at once from memory. Where agents have millions of series, most of
// a report's time is waiting for memory, and each series would be waited for alone.
func (in *ingester) fetchSeries() {
	as, read := in.agent, uint64(0)
	for i := range as.gauges {
		if b := as.gauges[i].block; b != nil {
			read += uint64(b.Slots())
		}
	}
	for i := range as.series {
		if b := as.series[i].block; b != nil {
			read += uint64(b.Slots())
		}
	}
	if read > 0 { // else there are groups, which have their own
		for i := range as.gauges {
			if s := &as.gauges[i]; s.block != nil {
				read += s.block.Fetch(s.slot)
			}
		}
		for i := range as.series {
			if s := &as.series[i]; s.block != nil {
				read += s.block.Fetch(s.slot)
			}
		}
	}
	runtime.KeepAlive(read)
}
