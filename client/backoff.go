package client

import (
	"errors"
	"math/rand/v2"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// defaultBackoffMin bounds the first wait: a service that restarts finds
	// its agents spread over a second.
	defaultBackoffMin = time.Second
	// defaultBackoffMax bounds all waits: below half of the default series TTL
	// of 2 min, so that an agent is back before its series expire.
	defaultBackoffMax = 30 * time.Second
	// maxRetryDelay bounds the delay that a service can ask for.
	maxRetryDelay = 10 * time.Minute
)

// Backoff bounds the waits between attempts to connect. It stands here as well as in
// the service, as the client shares no code with it and so has few dependencies. It
// also differs. The whole wait is random, not its second half, since all agents lose a
// service at one moment. The n-th wait is random between 0 and Min * 2^n, at most Max.
type Backoff struct {
	// Min bounds the first wait; 0: 1 s.
	Min time.Duration
	// Max bounds every wait, but those that the service asks for; 0: 30 s.
	Max time.Duration
}

func (b Backoff) validate() error {
	if b.Min < 0 || b.Max < 0 {
		return errors.New("backoff: is negative")
	}
	return nil
}

func (b Backoff) withDefaults() Backoff {
	if b.Min == 0 {
		b.Min = defaultBackoffMin
	}
	if b.Max == 0 {
		b.Max = max(defaultBackoffMax, b.Min)
	}
	return b
}

// ceiling returns the longest wait after the given number of attempts, from 0.
func (b Backoff) ceiling(attempt int) time.Duration {
	wait := b.Min
	for range attempt {
		if wait >= b.Max/2 {
			return b.Max
		}
		wait *= 2
	}
	return min(wait, b.Max)
}

// wait returns a random wait after the given number of attempts, from 0.
func (b Backoff) wait(attempt int) time.Duration {
	return jitter(b.ceiling(attempt))
}

// jitter returns a random duration from 0 to d.
func jitter(d time.Duration) time.Duration {
	return rand.N(max(d, 0) + 1)
}

// retryDelay returns how long the service asks to wait before trying again; 0:
// it does not ask.
func retryDelay(err error) time.Duration {
	s, ok := status.FromError(err)
	if !ok || s.Code() != codes.ResourceExhausted && s.Code() != codes.Unavailable {
		return 0
	}
	for _, detail := range s.Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return min(max(info.GetRetryDelay().AsDuration(), 0), maxRetryDelay)
		}
	}
	return 0
}
