package reports

import (
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// maxUnwritten bounds the reports of an agent that wait to be written. Its client has
// at most 16 with counts in flight, and there may be others between them.
const maxUnwritten = 32

// group has the reports that go to the same subscriptions.
type group struct {
	to []int64
	// order has the agents in the order of their first reports.
	order  []*unwritten
	agents map[agent.ID]*unwritten
}

// unwritten is what an agent reported and the database does not have. Counts are kept
// for each report, the rest only of the newest.
type unwritten struct {
	agent, workspace       agent.ID
	order                  agent.Order
	receivedAt, lastUsedAt time.Time
	data                   []byte
	// reports of one instance are in the order of their sequences; never empty.
	reports []report
}

// report has the counts of one report. Several that are written together are one, with
// the sequence of the newest.
type report struct {
	instance agent.Instance
	tracker  agent.ReportTracker
	// epoch of the session.
	epoch, sequence                                 int64
	reports, rxPackets, rxBytes, txPackets, txBytes int64
}

func reportOf(sum *agent.ReportSum) report {
	return report{
		instance: sum.Instance, tracker: sum.Tracker, epoch: sum.Order.Epoch, sequence: sum.Order.Sequence,
		reports: sum.Reports, rxPackets: sum.RxPackets, rxBytes: sum.RxBytes, txPackets: sum.TxPackets, txBytes: sum.TxBytes,
	}
}

func (p *report) empty() bool { return p.rxPackets|p.rxBytes|p.txPackets|p.txBytes == 0 }

// add adds a newer report to p.
func (p *report) add(newer report) {
	newer.reports = agent.SaturatingAdd(newer.reports, p.reports)
	newer.rxPackets = agent.SaturatingAdd(newer.rxPackets, p.rxPackets)
	newer.rxBytes = agent.SaturatingAdd(newer.rxBytes, p.rxBytes)
	newer.txPackets = agent.SaturatingAdd(newer.txPackets, p.txPackets)
	newer.txBytes = agent.SaturatingAdd(newer.txBytes, p.txBytes)
	*p = newer
}

// find returns the index of the report with a sequence, or that at which it is to be
// inserted.
func (u *unwritten) find(instance agent.Instance, sequence int64) (at int, found bool) {
	for i := range u.reports {
		if p := &u.reports[i]; p.instance == instance && p.sequence >= sequence {
			return i, p.sequence == sequence
		}
	}
	return len(u.reports), false
}

// appendSums appends the reports as they are written. The rest is part of the newest of
// each instance, as the database may have the others already.
func (u *unwritten) appendSums(sums []agent.ReportSum) []agent.ReportSum {
	for i := range u.reports {
		p := &u.reports[i]
		sum := agent.ReportSum{
			Agent: u.agent, Workspace: u.workspace, Instance: p.instance, Tracker: p.tracker,
			Order:   agent.Order{Epoch: p.epoch, Sequence: p.sequence},
			Reports: p.reports, RxPackets: p.rxPackets, RxBytes: p.rxBytes, TxPackets: p.txPackets, TxBytes: p.txBytes,
			ReceivedAt: u.receivedAt,
		}
		if i+1 == len(u.reports) || u.reports[i+1].instance != p.instance {
			sum.LastUsedAt, sum.Data = u.lastUsedAt, u.data
		}
		sums = append(sums, sum)
	}
	return sums
}

func (u *unwritten) bytes() int { return sumBytes + reportBytes*len(u.reports) + len(u.data) }

// Add adds a report to all subscriptions. It touches memory only, and copies the data.
// The report's tracker is notified when it is written, or at once if it never will be.
// It is not notified of what Run drops at its end.
func (r *Reports) Add(sum *agent.ReportSum) {
	if done := r.add(sum); done.tracker != nil {
		done.tracker.ReportWritten(done.sequence)
	}
}

// add returns a report that its agent need not keep any more; the zero value: none.
func (r *Reports) add(sum *agent.ReportSum) (done report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	added := reportOf(sum)
	if len(r.subscriptions) == 0 {
		return added
	}
	g := r.groups[len(r.groups)-1]
	u := g.agents[sum.Agent]
	switch {
	case u == nil && r.pending >= r.opts.Load().MaxPending:
		return r.dropLocked(droppedPending, added)
	case u == nil && !r.hasRoomLocked(sumBytes+reportBytes+len(sum.Data)):
		return r.dropLocked(droppedPendingBytes, added)
	case u == nil:
		r.addAgentLocked(g, sum)
		return report{}
	}
	at, again := u.find(sum.Instance, sum.Order.Sequence)
	newest := &u.reports[len(u.reports)-1]
	room := r.hasRoomLocked(reportBytes)
	switch {
	case again:
		u.reports[at].tracker = sum.Tracker // it was sent again over a newer stream
		return report{}
	case at < len(u.reports) && (!room || len(u.reports) == maxUnwritten):
		return added // it is in the batch that is being written, or one that came later is
	case newest.instance == added.instance && at == len(u.reports) && (!room || newest.empty() && added.empty()):
		// Without room the agent need not keep the one before, which is lost if this
		// replica is killed.
		done = *newest
		newest.add(added)
	case !room:
		return r.dropLocked(droppedPendingBytes, added)
	case len(u.reports) < maxUnwritten:
		u.reports = slices.Insert(u.reports, at, added)
		r.pendingBytes += reportBytes
	default:
		// Another replica has written the oldest, or the client would not have sent this one.
		done = r.dropLocked(droppedAgent, u.reports[0])
		copy(u.reports, u.reports[1:])
		u.reports[len(u.reports)-1] = added
	}
	r.addRestLocked(u, sum)
	return done
}

// addRestLocked adds what is not counted.
func (r *Reports) addRestLocked(u *unwritten, sum *agent.ReportSum) {
	if sum.LastUsedAt.After(u.lastUsedAt) {
		u.lastUsedAt = sum.LastUsedAt
	}
	more := len(sum.Data) - len(u.data)
	switch {
	case sum.Order.Compare(u.order) <= 0:
	case !r.hasRoomLocked(more):
		r.metrics.reduced.Add(float64(sum.Reports))
	default:
		r.pendingBytes += more
		u.order, u.workspace, u.receivedAt = sum.Order, sum.Workspace, sum.ReceivedAt
		u.data = append(u.data[:0], sum.Data...)
	}
}

// hasRoomLocked reports whether the pending reports may take so many more bytes.
func (r *Reports) hasRoomLocked(more int) bool {
	return more <= 0 || r.pendingBytes+more <= r.opts.Load().MaxPendingBytes
}

// dropLocked counts a report that is not written, and returns it.
func (r *Reports) dropLocked(reason string, p report) report {
	r.metrics.dropped.WithLabelValues(reason).Add(float64(p.reports))
	return p
}

// addAgentLocked adds the first report of an agent to a group.
func (r *Reports) addAgentLocked(g *group, sum *agent.ReportSum) {
	u := r.newUnwrittenLocked()
	*u = unwritten{
		agent: sum.Agent, workspace: sum.Workspace, order: sum.Order, receivedAt: sum.ReceivedAt, lastUsedAt: sum.LastUsedAt,
		data: append(u.data[:0], sum.Data...), reports: append(u.reports[:0], reportOf(sum)),
	}
	g.agents[u.agent] = u
	g.order = append(g.order, u)
	r.pendingBytes += u.bytes()
	if r.pending++; r.pending == batchSize {
		signal(r.due)
	}
}

func (r *Reports) newUnwrittenLocked() *unwritten {
	n := len(r.free)
	if n == 0 {
		return new(unwritten)
	}
	u := r.free[n-1]
	r.free = r.free[:n-1]
	return u
}

// freeLocked keeps the memory of written reports for the next ones, unless it is large.
func (r *Reports) freeLocked(u *unwritten) {
	if len(r.free) == maxFree {
		return
	}
	if cap(u.data) > maxFreeBytes {
		u.data = nil
	}
	if cap(u.reports) > maxFreeReports {
		u.reports = nil
	}
	clear(u.reports) // no tracker is retained
	r.free = append(r.free, u)
}
