package agentapi

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	defaultActivityInterval = 30 * time.Second
	minActivityInterval     = time.Second
	maxActivityInterval     = time.Hour
	// watchPause is the time between two messages to a watcher of reports, in
	// which they gather.
	watchPause = 250 * time.Millisecond
	// maxPartEntries are sent in one message.
	maxPartEntries = 1000
)

// WatchActivity implements agentstatsv1.CoderdServiceServer.
func (s *coderdService) WatchActivity(req *agentstatsv1.WatchActivityRequest, stream grpc.ServerStreamingServer[agentstatsv1.WatchActivityResponse]) error {
	interval := defaultActivityInterval
	if d := req.GetInterval(); d != nil {
		interval = d.AsDuration()
		if d.CheckValid() != nil || interval < minActivityInterval || interval > maxActivityInterval {
			return invalid("interval", "want %v to %v, got %v", minActivityInterval, maxActivityInterval, interval)
		}
	}
	end, err := s.beginWatch(watchActivity)
	if err != nil {
		return err
	}
	defer end()
	w := newActivityWatch(interval, s.Fleet.MaxAgents(), s.metrics)
	defer s.feed.watchActivity(w)()

	ctx := stream.Context()
	due := time.NewTimer(interval)
	defer due.Stop()
	for {
		select {
		case <-w.wake:
		case <-due.C:
		case <-s.streams.draining:
			return errDraining
		case <-ctx.Done():
			return ctx.Err()
		}
		now := time.Now()
		used, next := w.take(now)
		for len(used) > 0 {
			n := min(len(used), maxPartEntries)
			if err := stream.Send(&agentstatsv1.WatchActivityResponse{Workspaces: used[:n]}); err != nil {
				return err
			}
			used = used[n:]
		}
		if !next.IsZero() {
			due.Reset(next.Sub(now))
		}
		if err := s.pause(ctx); err != nil {
			return err
		}
	}
}

// pause lets reports gather for a watcher.
func (s *coderdService) pause(ctx context.Context) error {
	timer := time.NewTimer(watchPause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-s.streams.draining:
		return errDraining
	case <-ctx.Done():
		return ctx.Err()
	}
}

// activityWatch is what a watcher of activity has not been told.
type activityWatch struct {
	interval time.Duration
	limit    int
	metrics  *metrics
	// wake has an element when something can be told.
	wake chan struct{}

	mu sync.Mutex
	// used are the workspaces that were used within the interval, or are to be
	// told; at most limit. Guarded by mu.
	used map[agent.ID]use
}

// use is the use of one workspace.
type use struct {
	at time.Time
	// due is when it can be told again.
	due time.Time
	// untold is true if it was used since it was told.
	untold bool
}

func newActivityWatch(interval time.Duration, limit int, m *metrics) *activityWatch {
	return &activityWatch{
		interval: interval,
		limit:    limit,
		metrics:  m,
		wake:     make(chan struct{}, 1),
		used:     make(map[agent.ID]use),
	}
}

// workspaceUse is that a workspace was used.
type workspaceUse struct {
	workspace agent.ID
	at        time.Time
}

// report implements reportWatcher.
func (w *activityWatch) report(r reportOf) {
	if inUse(r.stats) {
		w.use(workspaceUse{r.workspace, r.now})
	}
}

func (w *activityWatch) use(of workspaceUse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	u, known := w.used[of.workspace]
	if !known && len(w.used) >= w.limit {
		w.metrics.watchDropped.Inc()
		return
	}
	if of.at.Before(u.at) {
		return // relayed late: a later use was told, or waits
	}
	waits := u.untold
	u.at, u.untold = of.at, true
	w.used[of.workspace] = u
	if waits {
		return // the handler was woken, or its timer runs
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take returns what can be told, which is told then, and when something else
// can be; zero: nothing waits. It forgets workspaces that were not used for the
// interval.
func (w *activityWatch) take(now time.Time) (told []*agentstatsv1.WorkspaceActivity, next time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, u := range w.used {
		switch {
		case u.due.After(now):
			if u.untold && (next.IsZero() || u.due.Before(next)) {
				next = u.due
			}
		case u.untold:
			told = append(told, &agentstatsv1.WorkspaceActivity{WorkspaceId: id[:], LastUsedAt: timestamppb.New(u.at)})
			w.used[id] = use{at: u.at, due: now.Add(w.interval)}
		default:
			delete(w.used, id)
		}
	}
	return told, next
}

// waits tells whether something was not told.
func (w *activityWatch) waits() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, u := range w.used {
		if u.untold {
			return true
		}
	}
	return false
}

// inUse tells whether a report shows that the workspace is in use: by a
// connection, or by a session in either form. A count that is refused shows
// nothing.
func inUse(s *agentstatsv1.Stats) bool {
	for _, n := range [...]int64{
		s.GetConnectionCount(), s.GetSessionCountVscode(), s.GetSessionCountJetbrains(),
		s.GetSessionCountReconnectingPty(), s.GetSessionCountSsh(),
	} {
		if within(agent.MaxReportedCount, n) > 0 {
			return true
		}
	}
	for _, n := range s.GetSessionCounts() {
		if within(agent.MaxReportedCount, n) > 0 {
			return true
		}
	}
	return false
}
