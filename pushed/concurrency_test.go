package pushed

import (
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// Instances push to two replicas in turn, which fold, expire and follow, and are
// scraped, all at once.
func TestConcurrent(t *testing.T) {
	database := new(memory)
	replicas := []*Families{open(t, database, Options{}), open(t, database, Options{})}
	const pushes = 30
	var pushing, scraping sync.WaitGroup
	stop := make(chan struct{})
	for id := range byte(4) {
		pushing.Go(func() {
			for n := range int64(pushes) {
				p := agent.Push{Instance: instanceID(1 + id), Snapshot: 1 + n, Families: serialize(t, parseText(t,
					"# TYPE x_total counter\nx_total "+string('0'+rune(n%10))+"\n# TYPE g gauge\ng 1\n")...)}
				_, err := replicas[n%2].Push(t.Context(), start, p)
				for errors.Is(err, agent.ErrOutdated) { // the folds of both came in between
					_, err = replicas[n%2].Push(t.Context(), start, p)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	for _, f := range replicas {
		scraping.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if f.WriteText(io.Discard) != nil || f.WriteProtobuf(io.Discard) != nil || f.Healthy() != nil {
					t.Error("a scrape failed")
				}
				f.expire(start)
				if err := f.foldIdle(t.Context(), start.Add(f.opts.Load().FoldAfter)); err != nil && !errors.Is(err, agent.ErrOutdated) {
					t.Error(err)
				}
				if err := f.Follow(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	pushing.Wait()
	close(stop)
	scraping.Wait()
	for _, f := range replicas {
		require.NoError(t, f.Follow(t.Context()))
		// Each counted to 9 three times.
		require.Equal(t, 4*3*9.0, check(t, f)[`{__name__="x_total"}`])
	}
}
