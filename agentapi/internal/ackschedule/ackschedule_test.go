package ackschedule

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/fleet"
)

// ackStep is one moment of a connection, at a time from its beginning in milliseconds.
type ackStep struct {
	at int
	// request is taken in; nil: none is.
	request *Request
	// progress of the instance then.
	received, durable int64
	// sent: an ack is sent then. Otherwise one is due by, 0: none is.
	sent bool
	by   int
}

func TestSchedule(t *testing.T) {
	delays := Delays{Ack: 5 * time.Second, Flush: 7 * time.Second}
	report := func(sequence int64) *Request { return &Request{Sequence: sequence} }
	reports := func(n, at int) (steps []ackStep) {
		for i := range int64(n) {
			by := at + 5000
			if i+1 >= 8 {
				by = at + 5
			}
			steps = append(steps, ackStep{at: at, request: report(i + 1), received: i + 1, durable: i + 1, by: by})
		}
		return steps
	}
	metadata := func(sequence int64) *Request { return &Request{Sequence: sequence, ForStore: true} }
	now := func(r *Request) *Request { r.Now = true; return r }
	for name, c := range map[string]struct {
		resume fleet.Progress
		steps  []ackStep
	}{
		"a report waits": {steps: []ackStep{
			{at: 0, request: report(1), received: 1, durable: 1, by: 5000},
			{at: 1000, request: report(2), received: 2, durable: 2, by: 5000},
			{at: 4999, received: 2, durable: 2, by: 5000},
			{at: 5000, received: 2, durable: 2, sent: true},
			{at: 9000, received: 2, durable: 2},
		}},
		"what is to be stored waits for that": {steps: []ackStep{
			{at: 0, request: metadata(1), received: 1, by: 12000},
			{at: 2000, request: metadata(2), received: 2, by: 12000},
			{at: 6000, received: 2, durable: 2, sent: true},
		}},
		"a report is acked with what is stored": {steps: []ackStep{
			{at: 0, request: metadata(1), received: 1, by: 12000},
			{at: 2000, request: report(2), received: 2, by: 7000},
			{at: 6000, received: 2, durable: 2, sent: true},
		}},
		"what is not stored in time is received": {steps: []ackStep{
			{at: 0, request: metadata(1), received: 1, by: 12000},
			{at: 12000, received: 1, sent: true},
			{at: 90000, received: 1, durable: 1, sent: true},
		}},
		"batches of one flush have one ack": {steps: []ackStep{
			{at: 0, request: metadata(1), received: 1, by: 12000},
			{at: 3000, request: metadata(2), received: 2, by: 12000},
			{at: 6000, received: 2, durable: 1, by: 7000},
			{at: 6100, received: 2, durable: 2, sent: true},
		}},
		"what is durable waits a moment for the rest": {steps: []ackStep{
			{at: 0, request: metadata(1), received: 1, by: 12000},
			{at: 3000, request: metadata(2), received: 2, by: 12000},
			{at: 6000, received: 2, durable: 1, by: 7000},
			{at: 7000, received: 2, durable: 1, sent: true},
			{at: 13000, received: 2, durable: 2, sent: true},
		}},
		"many requests wait for a moment": {steps: append(reports(7, 0), []ackStep{
			{at: 2000, request: report(8), received: 8, durable: 8, by: 2005},
			{at: 2003, request: metadata(9), received: 9, durable: 8, by: 2005},
			{at: 2005, received: 9, durable: 8, sent: true},
			{at: 2006, received: 9, durable: 9, sent: true},
		}...)},
		"very many requests do not wait": {steps: append(reports(31, 2000), []ackStep{
			{at: 2001, request: report(32), received: 32, durable: 32, sent: true},
			{at: 2002, request: report(33), received: 33, durable: 33, by: 7002},
		}...)},
		"an ack that is waited for does not wait": {steps: []ackStep{
			{at: 0, request: metadata(1), received: 1, by: 12000},
			{at: 1, request: now(metadata(2)), received: 2, sent: true},
			{at: 2, received: 2, durable: 1, sent: true},
			{at: 3, request: metadata(3), received: 3, durable: 1, by: 12003},
			{at: 4, received: 3, durable: 2, sent: true},
			{at: 5, request: metadata(4), received: 4, durable: 2, by: 12005},
		}},
		"an ack that is waited for may say nothing new": {steps: []ackStep{
			{at: 0, request: now(report(1)), sent: true},
			{at: 900, received: 1, durable: 1, sent: true},
			{at: 1000, request: report(2), received: 2, durable: 2, by: 6000},
		}},
		"one that says nothing new is not sent": {steps: []ackStep{
			{at: 0, request: report(1), by: 5000},
			{at: 5000, by: 5000},
			{at: 60000, received: 1, durable: 1, sent: true},
		}},
		"a report that was written waits": {steps: []ackStep{
			{at: 0, request: report(1), by: 5000},
			{at: 900, received: 1, durable: 1, by: 5000},
			{at: 5000, received: 1, durable: 1, sent: true},
		}},
		"what earlier sessions left is acked when it is stored": {resume: fleet.Progress{Received: 5, Durable: 2}, steps: []ackStep{
			{at: 0, received: 5, durable: 2},
			{at: 100, received: 5, durable: 3, by: 1100},
			{at: 200, received: 5, durable: 5, sent: true},
		}},
		"nothing moves without being acked": {steps: []ackStep{
			{at: 0, received: 3, durable: 3, by: 5000},
			{at: 5000, received: 3, durable: 3, sent: true},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var s Schedule
			s.Resume(c.resume)
			start := time.Now()
			after := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
			for i, step := range c.steps {
				if step.request != nil {
					s.Add(*step.request, after(step.at), &delays)
				}
				p := fleet.Progress{Received: step.received, Durable: step.durable}
				require.Equal(t, step.sent, s.IsDue(p, after(step.at), &delays), "step %d", i)
				if step.sent {
					s.Sent(p)
				}
				by := time.Time{}
				if step.by > 0 {
					by = after(step.by)
				}
				require.Equal(t, by, s.at, "step %d", i)
			}
		})
	}
}

// A timer is set once for each time.
func TestScheduleTimer(t *testing.T) {
	delays := Delays{Ack: 5 * time.Second, Flush: 7 * time.Second}
	var s Schedule
	start := time.Now()
	require.False(t, s.NeedsTimer(start))
	s.Add(Request{Sequence: 1, ForStore: true}, start, &delays)
	require.True(t, s.NeedsTimer(start))
	s.Add(Request{Sequence: 2, ForStore: true}, start.Add(time.Second), &delays)
	require.False(t, s.NeedsTimer(start.Add(time.Second)))
	s.Add(Request{Sequence: 3}, start.Add(2*time.Second), &delays)
	require.True(t, s.NeedsTimer(start.Add(2*time.Second)), "it is due earlier")
	s.Sent(fleet.Progress{Received: 3, Durable: 3})
	require.False(t, s.NeedsTimer(start.Add(3*time.Second)))
}
