package scrape

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/coder/agentstatsd/metrics"
)

const (
	// maxWorkers bounds the goroutines of one scrape, and with it the memory: 0.7
	// MB each. So many compress 4 GB of text a second.
	maxWorkers = 8
	// gatherBytes is from which size on short writes become a job.
	gatherBytes = 64 << 10
	// flushBytes is from which size on compressed output is written.
	flushBytes = 32 << 10
	// keptBytes is up to which size buffers are kept between scrapes.
	keptBytes = 1 << 20
)

// pipeline writes one scrape. What it is given becomes jobs, which workers make
// while those before them are written, in order, by the goroutine that uses the
// pipeline. If that one stops, so does all: nobody is further ahead than the
// ring is long.
type pipeline struct {
	w    io.Writer
	gzip bool

	queue   chan *job
	workers int
	running sync.WaitGroup

	// ring has the jobs. pending of them are handed over and not yet written, the
	// oldest is at first; the one behind them is being filled.
	ring           []job
	first, pending int

	err error
	sum gzipSum
	// out gathers compressed output; begun is true once some of it was written.
	out   []byte
	begun bool
}

// job is a stretch of the output.
type job struct {
	// raw was written, and segment, if there is one, follows it.
	raw     []byte
	segment metrics.Segment
	// done gets one value when the job is made: raw and what the segment lends, or
	// raw with the segment, or out.
	done chan struct{}
	lent []byte
	out  []byte
	sum  gzipSum
	err  error
}

// pipelines are kept for their buffers.
var pipelines = sync.Pool{New: func() any {
	return &pipeline{ring: make([]job, 2*min(maxWorkers, runtime.GOMAXPROCS(0))+1)}
}}

// newPipeline returns a pipeline to w, to be released. gzip makes one gzip
// member of what is written.
func newPipeline(w io.Writer, gzip bool) *pipeline {
	p := pipelines.Get().(*pipeline)
	p.w, p.gzip = w, gzip
	p.queue = make(chan *job, len(p.ring))
	for i := range p.ring {
		p.ring[i].done = make(chan struct{}, 1)
	}
	if gzip {
		p.out = append(p.out, gzipHeader...)
	}
	return p
}

// Deflates implements metrics.SegmentWriter.
func (p *pipeline) Deflates() bool { return p.gzip }

// Write has data written behind what was written before. It is not kept.
func (p *pipeline) Write(data []byte) (int, error) {
	written := 0
	for written < len(data) {
		if p.err != nil {
			return written, p.err
		}
		j := p.filled()
		n := min(len(data)-written, 2*gatherBytes-len(j.raw))
		j.raw = append(j.raw, data[written:written+n]...)
		written += n
		if len(j.raw) >= gatherBytes {
			p.submit()
		}
	}
	return written, p.err
}

// WriteSegment implements metrics.SegmentWriter.
func (p *pipeline) WriteSegment(s metrics.Segment) error {
	if p.err == nil {
		p.filled().segment = s
		p.submit()
	}
	return p.err
}

// filled returns the job that is being filled.
func (p *pipeline) filled() *job {
	return &p.ring[(p.first+p.pending)%len(p.ring)]
}

// submit hands the job that is being filled over to a worker, and writes what is
// ready. It returns when there is a job to be filled.
func (p *pipeline) submit() {
	if p.pending == p.workers && 2*p.workers < len(p.ring)-1 {
		p.workers++
		p.running.Add(1)
		go p.work()
	}
	p.queue <- p.filled()
	p.pending++
	for p.pending > 0 {
		if p.pending < len(p.ring) {
			select {
			case <-p.ring[p.first].done:
			default:
				return
			}
		} else {
			<-p.ring[p.first].done
		}
		p.writeFirst()
	}
}

// writeFirst writes the oldest job, which is done.
func (p *pipeline) writeFirst() {
	j := &p.ring[p.first]
	p.first, p.pending = (p.first+1)%len(p.ring), p.pending-1
	defer j.reset() // also if p.w panics
	switch {
	case p.err != nil:
	case j.err != nil:
		p.err = j.err
	case p.gzip:
		p.sum.add(j.sum.crc, j.sum.size)
		p.out = append(p.out, j.out...)
		if !p.begun || len(p.out) >= flushBytes {
			p.flush()
		}
	default:
		if len(j.raw) > 0 {
			_, p.err = p.w.Write(j.raw)
		}
		if len(j.lent) > 0 && p.err == nil {
			_, p.err = p.w.Write(j.lent)
		}
	}
}

func (p *pipeline) flush() {
	_, p.err = p.w.Write(p.out)
	p.out, p.begun = p.out[:0], true
}

// finish writes all that is left.
func (p *pipeline) finish() error {
	if p.err == nil && len(p.filled().raw) > 0 {
		p.submit()
	}
	p.drain()
	if p.err == nil && p.gzip {
		p.out = p.sum.appendTrailer(p.out)
		p.flush()
	}
	return p.err
}

// drain waits for the jobs that were handed over and writes them, unless there
// was an error.
func (p *pipeline) drain() {
	for p.pending > 0 {
		<-p.ring[p.first].done
		p.writeFirst()
	}
}

// release ends the workers. What was not finished is not written.
func (p *pipeline) release() {
	if p.err == nil {
		p.err = io.ErrClosedPipe
	}
	p.drain()
	for range p.workers {
		p.queue <- nil
	}
	p.running.Wait()
	p.filled().reset()
	if cap(p.out) > keptBytes {
		p.out = nil
	}
	p.w, p.workers, p.first, p.err = nil, 0, 0, nil
	p.sum, p.out, p.begun = gzipSum{}, p.out[:0], false
	pipelines.Put(p)
}

// work makes jobs until it is told to end.
func (p *pipeline) work() {
	defer p.running.Done()
	var d *metrics.Deflater
	for j := <-p.queue; j != nil; j = <-p.queue {
		if p.gzip && d == nil {
			d = deflaters.Get().(*metrics.Deflater)
		}
		if !j.run(d) {
			d = nil // it may be in any state
		}
		j.done <- struct{}{}
		// Whoever waits for a processor does not wait for more than one job.
		runtime.Gosched()
	}
	if d != nil {
		putDeflater(d)
	}
}

// run makes the job; false if that was a panic, which is the job's error.
func (j *job) run(d *metrics.Deflater) (ok bool) {
	defer func() {
		if !ok {
			j.err = fmt.Errorf("make a segment: panic: %v\n%s", recover(), debug.Stack())
		}
	}()
	switch {
	case d != nil:
		if len(j.raw) > 0 {
			j.add(d.Deflate(j.raw))
		}
		if j.segment != nil {
			j.add(j.segment.Deflated(d))
		}
	case j.segment != nil:
		if j.lent = j.segment.Lend(); j.lent == nil {
			j.raw = j.segment.AppendTo(j.raw)
		}
	}
	return true
}

func (j *job) add(s metrics.Deflated) {
	j.out = append(j.out, s.Data...)
	j.sum.add(s.CRC, s.Size)
}

func (j *job) reset() {
	if j.lent != nil {
		j.segment.Return()
		j.lent = nil
	}
	if cap(j.raw) > keptBytes/2 || cap(j.out) > keptBytes/2 {
		j.raw, j.out = nil, nil
	}
	j.raw, j.out = j.raw[:0], j.out[:0]
	j.segment, j.sum, j.err = nil, gzipSum{}, nil
}
