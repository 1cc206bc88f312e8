package coderdapi

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/grpcserver"
)

// The budget of futile calls is futileRate bytes a second, with a burst of futileBurst.
// A call costs the bytes that it sent, and futileCall. One processor decodes some 50 MB
// a second. The end of a call beyond the budget is delayed, by futileWait at most. At
// most futileCalls are delayed at once without a slot of coderd's calls. Their
// goroutines take some MB.
const (
	futileRate  = 4 << 20
	futileBurst = 8 << 20
	futileCall  = 64 << 10
	futileWait  = 10 * time.Second
	futileCalls = 256
)

// futile delays the ends of calls of coderd that send much without a result: they are
// refused, or cancelled before they are complete. So a caller that tries again at once
// is slowed.
type futile struct {
	pace   *rate.Limiter
	places *grpcserver.Slots
	slowed prometheus.Counter
}

func newFutile(m *metrics) *futile {
	return &futile{pace: rate.NewLimiter(futileRate, futileBurst), places: grpcserver.NewSlots(futileCalls), slowed: m.slowedCalls}
}

// isFutile reports whether a call that ended with err was refused for what it sent, or
// cancelled. sent is the number of its bytes without a result.
func isFutile(err error, sent int) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	switch status.Code(err) {
	case codes.InvalidArgument, codes.ResourceExhausted, codes.FailedPrecondition, codes.Aborted, codes.Canceled, codes.DeadlineExceeded:
		return true
	case codes.OK:
		return sent > 0 // a part of a snapshot
	}
	return false
}

// await blocks until a call that sent so many bytes without a result may end, or stop
// is closed. If it gets a place, it gives up its slot for other calls.
func (f *futile) await(call grpcserver.Call, sent int, stop <-chan struct{}) {
	reserved := f.pace.ReserveN(time.Now(), min(futileCall+sent, futileBurst))
	wait := reserved.Delay()
	if wait == 0 {
		return
	}
	if wait > futileWait {
		reserved.Cancel()
		wait = futileWait
	}
	f.slowed.Inc()
	switch {
	case f.places.TryAcquire():
		defer f.places.Release()
		call.ReleaseSlot()
	case !call.HasSlot():
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-stop:
	}
}
