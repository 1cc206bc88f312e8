package simulate

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"

	"github.com/coder/agentstatsd/client"
)

const (
	terminalInterval = time.Second
	plainInterval    = 10 * time.Second
)

// tally is the sum over a fleet at one time.
type tally struct {
	agents, connected int
	counts            client.Counts
	reconnects        int64
	unexpected        int64
}

func (f *fleet) tally() tally {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.former
	t.agents, t.unexpected = len(f.agents), f.observer.unexpected.Load()
	for _, a := range f.agents {
		t.add(a)
	}
	return t
}

// add adds what an agent did.
func (t *tally) add(a *agent) {
	s := a.client.Status()
	if s.Connection == client.Connected {
		t.connected++
	}
	t.counts.Reports += s.Counts.Reports
	t.counts.ReportsReceived += s.Counts.ReportsReceived
	t.counts.Samples += s.Counts.Samples
	t.counts.Metadata += s.Counts.Metadata
	t.counts.MetadataDurable += s.Counts.MetadataDurable
	t.counts.MetadataRefused += s.Counts.MetadataRefused
	t.counts.Refused += s.Counts.Refused
	t.reconnects += max(0, s.Counts.Sessions-1)
}

func (t tally) String() string {
	return fmt.Sprintf("%d/%d connected  reports %d/%d acked  metadata %d/%d durable  refused %d  errors %d  reconnects %d",
		t.connected, t.agents, t.counts.ReportsReceived, t.counts.Reports, t.counts.MetadataDurable, t.counts.Metadata,
		t.counts.Refused, t.unexpected, t.reconnects)
}

// showProgress shows how a fleet is until ctx is cancelled. It stops at the
// first error of w.
func showProgress(ctx context.Context, w io.Writer, now func() tally) {
	interval, format := plainInterval, "%s\n"
	if isTerminal(w) {
		// To the start of the line, and clear to its end.
		interval, format = terminalInterval, "\r\x1b[K%s"
		// Progress is not worth an error.
		defer func() { _, _ = fmt.Fprintln(w) }()
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if _, err := fmt.Fprintf(w, format, now()); err != nil {
				return
			}
		}
	}
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
