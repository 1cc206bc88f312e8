package federation

import (
	"io"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Instances push, the service folds and expires, and is scraped, all at once.
func TestConcurrent(t *testing.T) {
	f := open(t, new(memory), Options{})
	const pushes = 30
	var pushing, scraping sync.WaitGroup
	stop := make(chan struct{})
	for id := range byte(4) {
		pushing.Go(func() {
			for n := range int64(pushes) {
				pushText(t, f, start, 1+id, 1+n, "# TYPE x_total counter\nx_total "+string('0'+rune(n%10))+"\n# TYPE g gauge\ng 1\n")
			}
		})
	}
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
			if err := f.foldIdle(t.Context(), start); err != nil {
				t.Error(err)
			}
		}
	})
	pushing.Wait()
	close(stop)
	scraping.Wait()
	// Each counted to 9 three times.
	require.Equal(t, 4*3*9.0, check(t, f)[`{__name__="x_total"}`])
}
