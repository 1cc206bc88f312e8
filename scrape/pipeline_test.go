package scrape

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/metrics"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// segmentFunc is a segment of what a function returns.
type segmentFunc func() []byte

func (f segmentFunc) Borrow() []byte { return nil }

func (f segmentFunc) Release() { panic("nothing was borrowed") }

func (f segmentFunc) AppendTo(dst []byte) []byte { return append(dst, f()...) }

func (f segmentFunc) Deflated(d *metrics.Deflater) metrics.Deflated { return d.Deflate(f()) }

// borrowable is a segment of data that overwrites its bytes when they are released.
type borrowable struct {
	segmentFunc
	held      []byte
	borrowers *atomic.Int32
}

func (l borrowable) Borrow() []byte {
	l.borrowers.Add(1)
	return l.held
}

func (l borrowable) Release() {
	l.borrowers.Add(-1)
	clear(l.held)
}

// newBorrowable returns a borrowable segment of data.
func newBorrowable(data []byte, borrowers *atomic.Int32) borrowable {
	return borrowable{func() []byte { return data }, bytes.Clone(data), borrowers}
}

// segmented is a part that writes by a function.
type segmented func(w metrics.SegmentWriter) error

func (f segmented) WriteText(w io.Writer) error         { return f(w.(metrics.SegmentWriter)) }
func (f segmented) WriteProtobuf(w io.Writer) error     { return f(w.(metrics.SegmentWriter)) }
func (f segmented) Shard(metrics.Shard) metrics.Exposer { return f }

// What is written arrives in order, in both encodings.
func TestPipelineKeepsTheOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		zip := rapid.Bool().Draw(t, "gzip")
		var out bytes.Buffer
		var want []byte
		var borrowers atomic.Int32
		p := newPipeline(&out, zip)
		require.Equal(t, zip, p.Deflates())
		for i := range rapid.SampledFrom([]int{0, 1, 3, 30}).Draw(t, "writes") {
			piece := bytes.Repeat([]byte{byte(i)}, rapid.SampledFrom([]int{0, 1, 100, 100, 10 << 10, 150 << 10}).Draw(t, "size"))
			want = append(want, piece...)
			switch rapid.IntRange(0, 2).Draw(t, "how") {
			case 0:
				require.NoError(t, p.WriteSegment(segmentFunc(func() []byte { return piece })))
				continue
			case 1:
				require.NoError(t, p.WriteSegment(newBorrowable(piece, &borrowers)))
				continue
			}
			n, err := p.Write(piece)
			require.NoError(t, err)
			require.Equal(t, len(piece), n)
			if len(piece) > 0 {
				defer clear(piece) // it is not kept
			}
		}
		require.NoError(t, p.finish())
		p.release()
		require.Zero(t, borrowers.Load())
		got := out.Bytes()
		if zip {
			got = unzip(t, got)
		}
		require.True(t, bytes.Equal(want, got))
	})
}

// A scrape that is cut short ends its workers, and its buffers serve the next.
func TestPipelineThatIsNotFinished(t *testing.T) {
	for _, zip := range []bool{false, true} {
		bubble.Test(t, func(t *testing.T) {
			for range 3 {
				var out bytes.Buffer
				p := newPipeline(&out, zip)
				var borrowers atomic.Int32
				for range 20 {
					require.NoError(t, p.WriteSegment(newBorrowable(make([]byte, 1000), &borrowers)))
				}
				_, err := io.WriteString(p, "left")
				require.NoError(t, err)
				p.release()
				require.Zero(t, borrowers.Load())
				require.NotContains(t, out.String(), "left")

				out.Reset()
				p = newPipeline(&out, false)
				_, err = io.WriteString(p, "next")
				require.NoError(t, err)
				require.NoError(t, p.finish())
				p.release()
				require.Equal(t, "next", out.String())
			}
			// The bubble fails if a goroutine is left.
		})
	}
}

// slowWriter signals its first write and waits in all.
type slowWriter struct {
	begun, let chan struct{}
	n          int
}

func (w *slowWriter) Write(p []byte) (int, error) {
	if w.n == 0 {
		close(w.begun)
	}
	<-w.let
	w.n += len(p)
	return len(p), nil
}

// The first bytes are sent before most segments are made. While the client reads
// nothing, no more are made than fit the ring.
func TestPipelineStreams(t *testing.T) {
	for _, zip := range []bool{false, true} {
		bubble.Test(t, func(t *testing.T) {
			w := &slowWriter{begun: make(chan struct{}), let: make(chan struct{})}
			p := newPipeline(w, zip)
			var made atomic.Int32
			const n = 200
			done := make(chan error)
			go func() {
				defer p.release()
				for range n {
					if err := p.WriteSegment(segmentFunc(func() []byte {
						made.Add(1)
						return make([]byte, 100<<10)
					})); err != nil {
						done <- err
						return
					}
				}
				done <- p.finish()
			}()
			<-w.begun
			synctest.Wait()
			require.LessOrEqual(t, int(made.Load()), len(p.ring))
			require.Less(t, len(p.ring), n/5)
			close(w.let)
			require.NoError(t, <-done)
			require.EqualValues(t, n, made.Load())
		})
	}
}

// A client that goes away ends the scrape soon, with its own error.
func TestPipelineWriteError(t *testing.T) {
	gone := errors.New("gone")
	for _, zip := range []bool{false, true} {
		var made, borrowers atomic.Int32
		p := newPipeline(writerFunc(func([]byte) (int, error) { return 0, gone }), zip)
		var err error
		for err == nil {
			if err = p.WriteSegment(segmentFunc(func() []byte { made.Add(1); return make([]byte, 100<<10) })); err == nil {
				err = p.WriteSegment(newBorrowable(make([]byte, 100<<10), &borrowers))
			}
		}
		require.Equal(t, gone, err)
		_, err = p.Write([]byte("x"))
		require.Equal(t, gone, err)
		require.Equal(t, gone, p.finish())
		before := len(p.ring)
		p.release()
		require.LessOrEqual(t, int(made.Load()), before+1)
		require.Zero(t, borrowers.Load())
	}
}

// What was borrowed is released also if the writer panics.
func TestPipelineReturnsAfterAPanic(t *testing.T) {
	var borrowers atomic.Int32
	require.Panics(t, func() {
		p := newPipeline(writerFunc(func([]byte) (int, error) { panic("a bug") }), false)
		defer p.release()
		_ = p.WriteSegment(newBorrowable(make([]byte, 1000), &borrowers))
		_ = p.finish()
	})
	require.Zero(t, borrowers.Load())
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A bug in a segment cuts its scrape, and nothing else.
func TestSegmentThatPanics(t *testing.T) {
	for _, encoding := range []string{"identity", "gzip"} {
		bad := true
		reg := own()
		server := httptest.NewServer(newHandler(t, reg, Options{}, segmented(func(w metrics.SegmentWriter) error {
			for i := range 50 {
				if err := w.WriteSegment(segmentFunc(func() []byte {
					if bad && i == 20 {
						panic("a bug")
					}
					return []byte("# x\n")
				})); err != nil {
					return err
				}
			}
			return nil
		})))
		transport := &http.Transport{DisableCompression: true}
		scrape := func() (string, error) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
			require.NoError(t, err)
			r.Header.Set("Accept-Encoding", encoding)
			resp, err := transport.RoundTrip(r)
			if err != nil {
				return "", err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err == nil && encoding == "gzip" {
				body = unzip(t, body)
			}
			return string(body), err
		}
		_, err := scrape()
		require.Error(t, err)
		require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(errorsText(0, 1, 0)), "agentstatsd_scrape_errors_total"))
		bad = false
		body, err := scrape()
		require.NoError(t, err)
		require.Equal(t, 50, strings.Count(body, "# x\n"))
		transport.CloseIdleConnections()
		server.Close()
	}
}

// Buffers that became large are not kept for the next scrape.
func TestPipelineLetsLargeBuffersGo(t *testing.T) {
	huge := bytes.Repeat(benchText(100), 100)
	for _, zip := range []bool{false, true} {
		p := newPipeline(io.Discard, zip)
		for range 2 * len(p.ring) {
			require.NoError(t, p.WriteSegment(segmentFunc(func() []byte { return huge })))
		}
		require.NoError(t, p.finish())
		p.release()
		for i := range p.ring {
			require.LessOrEqual(t, cap(p.ring[i].raw), keptBytes)
			require.LessOrEqual(t, cap(p.ring[i].out), keptBytes)
			require.Nil(t, p.ring[i].segment)
		}
		require.LessOrEqual(t, cap(p.out), keptBytes)
	}
}
