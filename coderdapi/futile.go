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

// What calls may cost that come to nothing: together futileRate bytes a second, and
// futileBurst at once. A call costs what it sent and futileCall. A core takes in some
// 50 MB a second. A call that costs more ends later, by futileWait at most. Of these
// futileCalls wait at once, whose goroutines take some MB, and those that have a slot of
// coderd's calls.
const (
	futileRate  = 4 << 20
	futileBurst = 8 << 20
	futileCall  = 64 << 10
	futileWait  = 10 * time.Second
	futileCalls = 256
)

// futile paces calls of coderd that send much and come to nothing: they are refused, or
// left before they are complete. Their ends wait, and so does whoever tries again at once.
type futile struct {
	pace   *rate.Limiter
	places grpcserver.Slots
	slowed prometheus.Counter
}

func newFutile(m *metrics) *futile {
	return &futile{pace: rate.NewLimiter(futileRate, futileBurst), places: grpcserver.NewSlots(futileCalls), slowed: m.slowedCalls}
}

// isFutile reports whether a call ended through what it sent, or was left. Of the bytes
// that it sent so many had no result.
func isFutile(err error, sent int) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	switch status.Code(err) {
	case codes.InvalidArgument, codes.ResourceExhausted, codes.FailedPrecondition, codes.Aborted, codes.Canceled, codes.DeadlineExceeded:
		return true
	case codes.OK:
		return sent > 0 // of a snapshot without its end
	}
	return false
}

// await blocks until a call that sent so many bytes for nothing may end, or stop is
// closed. While there is a place for it, it does not keep other calls out.
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
