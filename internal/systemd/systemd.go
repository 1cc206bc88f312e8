// Package systemd tells the service manager how the process is, in the protocol of
// sd_notify(3): that it serves, reloads or stops, a line about it, and that it lives.
package systemd

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/oneline"
	"github.com/coder/agentstatsd/internal/outage"
	"github.com/coder/agentstatsd/internal/readiness"
)

// statusInterval is the time between two looks at the process, unless the watchdog wants
// more of them.
const statusInterval = 10 * time.Second

// unreadyInterval is the same while the process is not ready, which people wait for.
const unreadyInterval = time.Second

// maxStatusBytes bounds the line. The service manager drops messages above 4,096 bytes.
const maxStatusBytes = 1024

// numbers are the metrics that the line has, with what people call them.
var numbers = []struct{ family, label, value, name string }{
	{family: "agentstatsd_sessions", name: "sessions"},
	{family: "agentstatsd_bridge_connections", label: "kind", value: "agent", name: "connections of agents"},
}

// Notifier notifies the service manager that started the process, if one wants to know:
//
//	started --Run--> READY=1 --Reloading--> RELOADING=1 --Reloaded--> READY=1 --Stopping--> STOPPING=1
//
// READY=1 means that the listeners serve. It does not wait for readiness, as /-/ready has it: a unit
// that waits for a database would be killed. The line says what is missing.
// Its methods are safe for concurrent use. They block while the manager reads nothing.
type Notifier struct {
	enabled  bool // there is a manager
	metrics  prometheus.Gatherer
	ready    func() readiness.Answer
	replica  string
	log      *slog.Logger
	outage   *outage.Log
	interval time.Duration // between two looks
	watchdog bool          // each look is notified

	mu sync.Mutex
	// Guarded by mu.

	last     string // line that was sent
	stopping bool
}

// New returns a Notifier. ready returns the answer of /-/ready. metrics are the process's
// own. Both ask all of its parts, so they do not return while one of these hangs. replica
// is who the process is among others; empty: it is alone.
func New(metrics prometheus.Gatherer, ready func() readiness.Answer, replica string, log *slog.Logger) (*Notifier, error) {
	n := &Notifier{
		enabled: os.Getenv("NOTIFY_SOCKET") != "", metrics: metrics, ready: ready, replica: replica, log: log, interval: statusInterval,
		outage: outage.New(log, "the service manager cannot be notified", "the service manager is notified again"),
	}
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return nil, fmt.Errorf("WATCHDOG_USEC, WATCHDOG_PID: %w", err)
	}
	if watchdog > 0 {
		n.interval, n.watchdog = watchdog/2, true
	}
	return n, nil
}

// Run notifies that the process serves, and then how it is, until ctx is cancelled. It
// returns nil. The watchdog is notified at half of its time, after all parts have
// answered: while one hangs, it is not, and the manager ends the process.
func (n *Notifier) Run(ctx context.Context) error {
	if !n.enabled {
		<-ctx.Done()
		return nil
	}
	for state := daemon.SdNotifyReady; ; state = "" {
		next := n.interval
		if !n.look(ctx, state) {
			next = min(next, unreadyInterval)
		}
		select {
		case <-ctx.Done():
			n.Stopping()
			return nil
		case <-time.After(next):
		}
	}
}

// Reloading notifies that the configuration is read again.
func (n *Notifier) Reloading() {
	// The time is a line of its own, which Type=notify-reload asks for.
	n.send(context.Background(), daemon.SdNotifyReloading, strings.TrimSpace(daemon.SdNotifyMonotonicUsec()))
}

// Reloaded notifies that the reload has ended. The line has why it failed, if it did.
func (n *Notifier) Reloaded() {
	if n.enabled {
		n.look(context.Background(), daemon.SdNotifyReady)
	}
}

// Stopping notifies that the process stops, once.
func (n *Notifier) Stopping() {
	n.mu.Lock()
	before := n.stopping
	n.stopping = true
	n.mu.Unlock()
	if !before {
		n.send(context.Background(), daemon.SdNotifyStopping)
	}
}

// look asks all parts, and notifies what they say, with state before it. It returns whether
// the process is ready.
func (n *Notifier) look(ctx context.Context, state string) (ready bool) {
	slow := time.AfterFunc(n.interval, func() {
		n.log.Error("a part of the process does not answer: the watchdog is not notified", "for", n.interval)
	})
	line, ready := n.line()
	slow.Stop()
	var states []string
	if state != "" {
		states = append(states, state)
	}
	if n.watchdog {
		states = append(states, daemon.SdNotifyWatchdog)
	}
	n.mu.Lock()
	changed := n.last != line
	n.last = line
	n.mu.Unlock()
	if changed || state != "" {
		states = append(states, "STATUS="+line)
	}
	if len(states) > 0 {
		n.send(ctx, states...)
	}
	return ready
}

// send sends one message. Without a manager it does nothing.
func (n *Notifier) send(ctx context.Context, states ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(states, "\n")); err != nil {
		n.outage.Failed(ctx, err)
		return
	}
	n.outage.Works(ctx)
}

// line returns how the process is: whether it is ready or why not, numbers, warnings.
func (n *Notifier) line() (line string, ready bool) {
	answer := n.ready()
	parts := []string{"ready"}
	if !answer.Ready {
		reasons := make([]string, 0, len(answer.Reasons))
		for _, part := range slices.Sorted(maps.Keys(answer.Reasons)) {
			if reason := answer.Reasons[part]; reason != readiness.DatabasePart { // which has its own
				reasons = append(reasons, part+": "+reason)
			}
		}
		parts[0] = "not ready: " + strings.Join(reasons, "; ")
	}
	families, err := n.metrics.Gather()
	if err != nil {
		answer.Warnings = append(answer.Warnings, "some metrics cannot be gathered")
	}
	for _, number := range numbers {
		for _, family := range families {
			if family.GetName() != number.family {
				continue
			}
			for _, m := range family.GetMetric() {
				if number.label == "" || hasLabel(m, number.label, number.value) {
					parts = append(parts, fmt.Sprintf("%.0f %s", m.GetGauge().GetValue(), number.name))
				}
			}
		}
	}
	if n.replica != "" {
		parts = append(parts, "replica "+n.replica)
	}
	if len(answer.Warnings) > 0 {
		parts = append(parts, "warning: "+strings.Join(answer.Warnings, "; "))
	}
	return agent.ShortenText(oneline.Text(strings.Join(parts, ", ")), maxStatusBytes), answer.Ready
}

func hasLabel(m *dto.Metric, name, value string) bool {
	return slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetName() == name && l.GetValue() == value })
}
