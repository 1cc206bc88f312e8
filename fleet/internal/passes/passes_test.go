package passes_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/fleet/internal/passes"
	"github.com/coder/agentstatsd/internal/bubble"
)

const (
	interval = time.Minute
	pause    = time.Second
)

// reads are what Run calls. Each takes some time; the first one fails with err.
type reads struct {
	takes time.Duration
	err   error
	at    []time.Duration // since the beginning
}

// run runs passes until stop is called.
func run(t *testing.T, r *reads) (p *passes.Passes, stop func()) {
	p = passes.New()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	began := time.Now()
	go func() {
		defer close(ended)
		p.Run(ctx, interval, pause, func(context.Context) error {
			r.at = append(r.at, time.Since(began))
			time.Sleep(r.takes)
			if len(r.at) == 1 {
				return r.err
			}
			return nil
		})
	}()
	synctest.Wait()
	return p, func() { cancel(); <-ended }
}

// A pass is made when it is asked for, after a pause, and else at each interval. However
// often it is asked for while one is made, one follows.
func TestRun(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := &reads{takes: 10 * time.Second}
		p, stop := run(t, r)
		p.Ask()
		time.Sleep(r.takes / 2)
		for range 3 {
			p.Ask()
		}
		time.Sleep(3*interval - r.takes)
		stop()
		require.Equal(t, []time.Duration{0, r.takes + pause, interval, 2 * interval}, r.at)
	})
}

// Who joins waits for a pass that starts later than that, together with others, and gets its
// outcome.
func TestJoin(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := &reads{takes: 10 * time.Second, err: errors.New("no database")}
		p, stop := run(t, r)
		first := p.Join()
		synctest.Wait()
		second := p.Join()
		require.NotSame(t, first, second, "the first one has begun")
		require.Same(t, second, p.Join())
		<-first.Done()
		require.Equal(t, r.err, first.Err())
		require.Equal(t, r.err, p.Err())
		<-second.Done()
		require.NoError(t, second.Err())
		require.NoError(t, p.Err())
		stop()
		require.Equal(t, []time.Duration{0, 11 * time.Second}, r.at)
	})
}

// Nobody waits for a pass that is not made any more.
func TestRunEnds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := &reads{takes: 10 * time.Second}
		p, stop := run(t, r)
		p.Ask()
		synctest.Wait()
		joined := p.Join()
		stop()
		<-joined.Done()
		require.ErrorIs(t, joined.Err(), context.Canceled)
		require.Len(t, r.at, 1)
	})
}
