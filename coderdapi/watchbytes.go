package coderdapi

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/grpcserver"
)

// ReadMessages is the least ratio of Options.MaxWatchesBytes to the server's
// Options.MaxMessageBytes. A response of GetMetadata takes three times its size of half
// of that, as its values take twice as much decoded.
const ReadMessages = 6

// watchBytes bounds the memory of watches and GetMetadata. Half of
// Options.MaxWatchesBytes is for reads, which wait in a queue for their share. The
// other half is for the hashes of what watches have sent.
type watchBytes struct {
	room    *semaphore.Weighted
	limit   int64 // of room
	used    atomic.Int64
	sent    *byteBudget
	refused prometheus.Counter
	// batchesRefused counts batches of reports that wait as there was no room.
	batchesRefused prometheus.Counter
}

func newWatchBytes(o *Options, m *metrics) *watchBytes {
	half := o.MaxWatchesBytes / 2
	return &watchBytes{
		room:    semaphore.NewWeighted(int64(half)),
		limit:   int64(half),
		sent:    newByteBudget(bytesWatches, flagWatchesBytes, half, m),
		refused: m.bytesRefused.WithLabelValues(bytesReads),

		batchesRefused: m.bytesRefused.WithLabelValues(bytesBatches),
	}
}

// acquire waits until n bytes may be read, for at most within. The caller releases the
// reservation. The error is a status.
func (w *watchBytes) acquire(ctx context.Context, n int, within time.Duration) (*readReservation, error) {
	waiting, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if w.room.Acquire(waiting, int64(n)) != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		w.refused.Inc()
		return nil, grpcserver.Exhausted(time.Second, fmt.Sprintf("want at most %d bytes of metadata read at once, half of %s, waited %v for %d bytes; try again later",
			w.limit, flagWatchesBytes, within, n))
	}
	w.used.Add(int64(n))
	return &readReservation{w, n}, nil
}

// A batch of reports has at most 1 MiB in the database. It is in memory as read, as
// decoded, as encoded and as sent.
const (
	batchCopies    = 4
	reportsRoom    = batchCopies << 20
	reportsPatient = 2 * time.Second // much less than the lease of a subscription
)

// batchRoom waits for room for a batch of reports, as agent.ReportWatch says.
func (w *watchBytes) batchRoom(ctx context.Context) (keep func(bytes int), err error) {
	n := min(reportsRoom, w.limit)
	waiting, cancel := context.WithTimeout(ctx, reportsPatient)
	defer cancel()
	if w.room.Acquire(waiting, n) != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		w.batchesRefused.Inc()
		return nil, agent.ErrNoRoom
	}
	w.used.Add(n)
	reserved := &readReservation{w, int(n)}
	return func(bytes int) { reserved.shrink(batchCopies * bytes) }, nil
}

// inUse returns how many bytes are reserved.
func (w *watchBytes) inUse() int { return int(w.used.Load()) + w.sent.inUse() }

// readReservation is what one read has reserved.
type readReservation struct {
	of *watchBytes
	n  int
}

// shrink releases all but n bytes.
func (r *readReservation) shrink(n int) {
	if n < r.n {
		r.of.used.Add(int64(n - r.n))
		r.of.room.Release(int64(r.n - n))
		r.n = n
	}
}

func (r *readReservation) release() { r.shrink(0) }

// What a watch takes for each agent: its id, entries of three maps, and the head of a
// slice. Beside that each value that was sent takes 8 bytes.
const watchedAgentBytes = 256

// grow reserves memory for a watch that has sent so many values. After an error the
// reservation is as before.
func (w *watch) grow(values int) error {
	n := watchedAgentBytes*len(w.ids) + 8*values
	if n > w.limit {
		w.budget.refused.Inc()
		return grpcserver.Exhausted(time.Second, fmt.Sprintf("agent_ids: want at most %d bytes in memory of a watch, half of %s, got %d: watch fewer agents at once", w.limit, flagWatchBytes, n))
	}
	if n > w.reserved {
		if err := w.budget.acquire(n - w.reserved); err != nil {
			return err
		}
		w.reserved = n
	}
	return nil
}

// close releases what the watch has reserved.
func (w *watch) close() {
	w.budget.release(w.reserved)
	w.reserved = 0
}

// metadataBytes returns what values take in memory.
func metadataBytes(rows []agent.Metadata) int {
	n := 0
	for i := range rows {
		n += rows[i].Bytes()
	}
	return n
}
