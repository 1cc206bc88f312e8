package agentapi

import (
	"time"

	"github.com/coder/agentstatsd/agent"
)

// sumOf returns the counts of a report, for those who watch reports: 0 for each that
// is refused where reports are served.
func sumOf(s agent.Stats, now time.Time) agent.ReportSum {
	sum := agent.ReportSum{
		Reports:    1,
		RxPackets:  within(agent.MaxReportedBytes, s.RxPackets),
		RxBytes:    within(agent.MaxReportedBytes, s.RxBytes),
		TxPackets:  within(agent.MaxReportedBytes, s.TxPackets),
		TxBytes:    within(agent.MaxReportedBytes, s.TxBytes),
		ReceivedAt: now,
	}
	if inUse(&s) {
		sum.LastUsedAt = now
	}
	return sum
}

// inUse tells whether a report shows that the workspace is in use: by a connection,
// or by a session. A count that is refused shows nothing.
func inUse(s *agent.Stats) bool {
	if within(agent.MaxReportedCount, s.ConnectionCount) > 0 {
		return true
	}
	for _, n := range s.Apps {
		if within(agent.MaxReportedCount, n) > 0 {
			return true
		}
	}
	return false
}
