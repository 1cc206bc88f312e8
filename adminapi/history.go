package adminapi

import (
	"context"
	"math"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// historyStep is the time between two values.
	historyStep = 15 * time.Second
	// historySteps are the values of an hour.
	historySteps = int(time.Hour / historyStep)
	// scrapeSteps is over how many steps scrapes are averaged, as they are rarer.
	scrapeSteps = 4
)

// curve is what is charted of the metrics.
type curve struct {
	name, unit string
	// family whose value it is, of the series with the label, if one is named.
	family, label, value string
	// rate: by how much it rises in a second.
	rate bool
}

// curves are all charts. The time of scrapes is one more, which is a mean.
var curves = [...]curve{
	{name: "pending", unit: "1", family: "agentstatsd_metadata_pending"},
	{name: "oldest_pending_seconds", unit: "seconds", family: "agentstatsd_metadata_oldest_pending_seconds"},
	{name: "flush_seconds", unit: "seconds", family: "agentstatsd_metadata_last_flush_seconds"},
	{name: "received_per_second", unit: "per second", family: "agentstatsd_metadata_entries_total", label: "outcome", value: "received", rate: true},
	{name: "flushed_per_second", unit: "per second", family: "agentstatsd_metadata_entries_total", label: "outcome", value: "flushed", rate: true},
	{name: "flush_errors_per_second", unit: "per second", family: "agentstatsd_metadata_flush_errors_total", rate: true},
	{name: "refused_per_second", unit: "per second", family: "agentstatsd_refused_items_total", rate: true},
	{name: "series", unit: "1", family: "agentstatsd_series"},
	{name: "connected", unit: "1", family: "agentstatsd_sessions"},
	{name: "resident_bytes", unit: "bytes", family: "process_resident_memory_bytes"},
	{name: "cores", unit: "1", family: processorSeconds, rate: true},
}

const (
	// scrapeCurve is the chart of scrapes.
	scrapeCurve = len(curves)
	scrapeName  = "scrape_seconds"
	// processorSeconds is the time of processors that the process used.
	processorSeconds = "process_cpu_seconds_total"
)

// of returns the value that is charted; NaN: there is none.
func (c *curve) of(g gathered) float64 {
	switch {
	case g[c.family] == nil:
		return math.NaN()
	case c.label == "":
		return g.value(c.family)
	default:
		return g.by(c.family, c.label)[c.value]
	}
}

// history has the charts of the last hour, in rings: 23 KB. The zero value is empty.
type history struct {
	mu sync.Mutex
	// Guarded by mu.

	end     time.Time // when the newest values were taken; zero: there are none
	steps   int       // since the first values
	rings   [scrapeCurve + 1][historySteps]float64
	last    [scrapeCurve]float64 // what was charted at end, before it is a rate
	scrapes [scrapeSteps + 1]scrapesUntil
}

// scrapesUntil are the scrapes until a step: their number, and the seconds that they took.
type scrapesUntil struct{ count, seconds float64 }

// add adds the values of a moment. What was missed before it, as a process that was
// suspended does, is not known.
func (h *history) add(now time.Time, g gathered) {
	h.mu.Lock()
	defer h.mu.Unlock()
	elapsed, missed := now.Sub(h.end), 0
	if !h.end.IsZero() {
		missed = int(min((elapsed+historyStep/2)/historyStep, time.Duration(historySteps))) - 1
	}
	for range missed {
		for i := range h.rings {
			h.rings[i][h.steps%historySteps] = math.NaN()
		}
		h.steps++
	}
	at := h.steps % historySteps
	for i := range curves {
		v := curves[i].of(g)
		h.rings[i][at] = v
		if curves[i].rate {
			h.rings[i][at] = math.NaN()
			if !h.end.IsZero() {
				h.rings[i][at] = max(0, v-h.last[i]) / elapsed.Seconds()
			}
		}
		h.last[i] = v
	}
	var until scrapesUntil
	for _, m := range g["agentstatsd_scrape_duration_seconds"].GetMetric() {
		until.count += float64(m.GetHistogram().GetSampleCount())
		until.seconds += m.GetHistogram().GetSampleSum()
	}
	copy(h.scrapes[:], h.scrapes[1:])
	h.scrapes[scrapeSteps] = until
	before := h.scrapes[0]
	h.rings[scrapeCurve][at] = math.NaN()
	if until.count > before.count {
		h.rings[scrapeCurve][at] = (until.seconds - before.seconds) / (until.count - before.count)
	}
	h.steps++
	h.end = now
}

// charts returns all charts, the oldest values first.
func (h *history) charts() (end time.Time, all []*agentstatsv1.Chart) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.rings {
		c := &agentstatsv1.Chart{Name: scrapeName, Unit: "seconds", Values: make([]float64, historySteps)}
		if i < scrapeCurve {
			c.Name, c.Unit = curves[i].name, curves[i].unit
		}
		for n := range c.Values {
			if step := h.steps - historySteps + n; step >= 0 {
				c.Values[n] = h.rings[i][step%historySteps]
			} else {
				c.Values[n] = math.NaN()
			}
		}
		all = append(all, c)
	}
	return h.end, all
}

// cores returns how many cores were used since the newest values until now, when it was so
// many seconds; NaN: it is not known.
func (h *history) cores(now time.Time, seconds float64) float64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range curves {
		if curves[i].family != processorSeconds || h.end.IsZero() {
			continue
		}
		if since := now.Sub(h.end); since >= time.Second { // else it is too coarse
			return max(0, seconds-h.last[i]) / since.Seconds()
		}
		return h.rings[i][(h.steps-1)%historySteps]
	}
	return math.NaN()
}

// sample takes the values of the charts, until ctx ends.
func (s *Service) sample(ctx context.Context) {
	ticker := time.NewTicker(historyStep)
	defer ticker.Stop()
	for {
		g, _ := gather(s.Metrics) // what is missing is not known; GetStatus says why
		now := time.Now()
		s.history.add(now, g)
		s.shortages.add(now, g)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// GetHistory implements agentstatsv1.AdminServiceServer.
func (s *Service) GetHistory(context.Context, *agentstatsv1.GetHistoryRequest) (*agentstatsv1.GetHistoryResponse, error) {
	end, charts := s.history.charts()
	resp := &agentstatsv1.GetHistoryResponse{Step: durationpb.New(historyStep), Charts: charts}
	if !end.IsZero() {
		resp.End = timestamppb.New(end)
	}
	return resp, nil
}
