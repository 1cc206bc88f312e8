package simulate

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// Summary is what a simulation did.
type Summary struct {
	// Agents in the fleet.
	Agents int `json:"agents"`
	// ReportsSent were handed to the client; ReportsAcked are those of them
	// whose content the service has received, maybe as a part of a later one.
	ReportsSent  int64 `json:"reports_sent"`
	ReportsAcked int64 `json:"reports_acked"`
	// SamplesSent in the reports.
	SamplesSent int64 `json:"samples_sent"`
	// MetadataSent values were handed to the client; MetadataAcked are those of
	// them that are durable, themselves or by a newer value of their key.
	MetadataSent  int64 `json:"metadata_sent"`
	MetadataAcked int64 `json:"metadata_acked"`
	// PushesSent are snapshots of coderd's metrics; PushesAcked are those of them
	// that are durable. One that is lost is replaced by the next.
	PushesSent  int64 `json:"pushes_sent"`
	PushesAcked int64 `json:"pushes_acked"`
	// FamiliesRefused of the newest snapshots of all instances, also those that
	// are the service's own, like go_goroutines, which is as it should be.
	FamiliesRefused int64 `json:"families_refused"`
	// Rebuilds of workspaces.
	Rebuilds int64 `json:"rebuilds"`
	// Moves of agents to another target by churn.
	Moves int64 `json:"moves"`
	// Refused samples, values and states, for any reason.
	Refused int64 `json:"refused"`
	// Errors counts what was not acked at the end, and what was refused other than for
	// a limit. It includes refused families that are not the service's own.
	Errors int64 `json:"errors"`
	// Reconnects are sessions after an agent's first.
	Reconnects int64 `json:"reconnects"`
	// DurationSeconds from the first registration to the last ack.
	DurationSeconds float64 `json:"duration_seconds"`

	// Check is what the checks of the replicas' metrics found; nil: there were
	// none.
	Check *CheckSummary `json:"check,omitempty"`

	// Watched is what coderd received of reports; nil: it did not watch.
	Watched *WatchSummary `json:"watched,omitempty"`

	// Refusals by reason.
	Refusals map[string]int64 `json:"refusals,omitempty"`
	// ReportAckSeconds are quantiles of the time from a report to its ack, which waits
	// in the service for other responses.
	ReportAckSeconds Quantiles `json:"report_ack_seconds"`
	// MetadataSeconds are quantiles of the time from the change of a metadata value
	// to the ack that says that it is in the database. Values that a newer one
	// replaced before are not among them.
	MetadataSeconds Quantiles `json:"metadata_seconds"`
}

// Quantiles of a distribution, right within 10 %.
type Quantiles struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	P99 float64 `json:"p99"`
}

func quantiles(l *latencies) Quantiles {
	return Quantiles{P50: l.quantile(0.5).Seconds(), P95: l.quantile(0.95).Seconds(), P99: l.quantile(0.99).Seconds()}
}

// Complete reports whether all that was sent was acked and nothing went wrong.
func (s Summary) Complete() bool {
	return s.Errors == 0 && s.ReportsSent == s.ReportsAcked && s.MetadataSent == s.MetadataAcked && s.Check.Clean()
}

// WriteJSON writes s as one JSON object on a line.
func (s Summary) WriteJSON(w io.Writer) error {
	if err := json.NewEncoder(w).Encode(s); err != nil {
		return fmt.Errorf("write summary: %w", err)
	}
	return nil
}

// WriteText writes s for a person.
func (s Summary) WriteText(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		// Flush returns the error.
		_, _ = fmt.Fprintf(table, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	row("agents", "%d", s.Agents)
	row("duration", "%.1f s", s.DurationSeconds)
	row("reports", "%d sent, %d acked", s.ReportsSent, s.ReportsAcked)
	row("samples", "%d sent", s.SamplesSent)
	row("metadata", "%d sent, %d durable", s.MetadataSent, s.MetadataAcked)
	row("pushes", "%d sent, %d durable, %d families refused", s.PushesSent, s.PushesAcked, s.FamiliesRefused)
	row("rebuilds", "%d", s.Rebuilds)
	row("moves", "%d", s.Moves)
	q := s.ReportAckSeconds
	row("acks of reports", "%.1f ms median, %.1f ms p95, %.1f ms p99", 1e3*q.P50, 1e3*q.P95, 1e3*q.P99)
	q = s.MetadataSeconds
	row("acks of values", "%.1f s median, %.1f s p95, %.1f s p99", q.P50, q.P95, q.P99)
	row("reconnects", "%d", s.Reconnects)
	reasons := make([]string, 0, len(s.Refusals))
	for _, reason := range slices.Sorted(maps.Keys(s.Refusals)) {
		reasons = append(reasons, fmt.Sprintf(" (%s: %d)", reason, s.Refusals[reason]))
	}
	row("refused", "%d%s", s.Refused, strings.Join(reasons, ""))
	row("errors", "%d", s.Errors)
	if w := s.Watched; w != nil {
		row("watched", "%d reports in %d batches, %d uses of workspaces", w.Reports, w.Batches, w.Uses)
	}
	if c := s.Check; c != nil {
		row("checks", "%d, of %d agents in sum", c.Checks, c.Agents)
		row("served twice", "%d, and %d in passing", c.Duplicates, c.TransientDuplicates)
		row("missed", "%d, and %d in passing", c.Misses, c.TransientMisses)
		for _, violation := range c.Violations {
			row("", "%s", violation)
		}
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("write summary: %w", err)
	}
	return nil
}
