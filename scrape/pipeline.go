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
	// maxWorkers bounds the goroutines of one scrape, which take 0.7 MB each. 8
	// compress 4 GB of text a second.
	maxWorkers = 8
	// gatherBytes is the size from which short writes become a job.
	gatherBytes = 64 << 10
	// flushBytes is the size from which compressed output is written.
	flushBytes = 32 << 10
	// keptBytes is the largest size of buffers that are kept between scrapes.
	keptBytes = 1 << 20
)

// pipeline writes one scrape. It divides the output into jobs. Workers make jobs, and
// the goroutine that uses the pipeline writes them in order. The workers are never
// further ahead of it than the length of the ring.
//
// A job of the ring has one of these states:
//
//	open --submit--> queued --worker--> done --writeFirst--> free --> open
//
// The user's goroutine owns all fields of the pipeline and of open jobs. A worker owns
// a queued job until it sends on done.
type pipeline struct {
	w    io.Writer
	gzip bool

	queue   chan *job
	workers int
	running sync.WaitGroup

	// ring has the jobs. pending of them are queued or done. first is the index of
	// the oldest. The one behind them is open.
	ring           []job
	first, pending int

	err error
	sum gzipSum
	// out buffers compressed output. started is true once some was written.
	out     []byte
	started bool
}

// job is a part of the output.
type job struct {
	// raw was written. segment, which may be nil, follows it.
	raw     []byte
	segment metrics.Segment
	// done gets one value when the job is made. Its result is raw and borrowed, or
	// raw alone, or out.
	done     chan struct{}
	borrowed []byte
	out      []byte
	sum      gzipSum
	err      error
}

// pipelines are kept for their buffers.
var pipelines = sync.Pool{New: func() any {
	return &pipeline{ring: make([]job, 2*min(maxWorkers, runtime.GOMAXPROCS(0))+1)}
}}

// newPipeline returns a pipeline to w, which release must follow. If gzip is true, the
// output is one gzip member.
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

// Write writes data behind what was written before. It does not keep data.
func (p *pipeline) Write(data []byte) (int, error) {
	written := 0
	for written < len(data) {
		if p.err != nil {
			return written, p.err
		}
		j := p.openJob()
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
		p.openJob().segment = s
		p.submit()
	}
	return p.err
}

// openJob returns the open job.
func (p *pipeline) openJob() *job {
	return &p.ring[(p.first+p.pending)%len(p.ring)]
}

// submit queues the open job, and writes the oldest ones that are done. It waits until
// another job is open.
func (p *pipeline) submit() {
	if p.pending == p.workers && 2*p.workers < len(p.ring)-1 {
		p.workers++
		p.running.Add(1)
		go p.work()
	}
	p.queue <- p.openJob()
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
		if !p.started || len(p.out) >= flushBytes {
			p.flush()
		}
	default:
		if len(j.raw) > 0 {
			_, p.err = p.w.Write(j.raw)
		}
		if len(j.borrowed) > 0 && p.err == nil {
			_, p.err = p.w.Write(j.borrowed)
		}
	}
}

func (p *pipeline) flush() {
	_, p.err = p.w.Write(p.out)
	p.out, p.started = p.out[:0], true
}

// finish writes the rest of the output.
func (p *pipeline) finish() error {
	if p.err == nil && len(p.openJob().raw) > 0 {
		p.submit()
	}
	p.drain()
	if p.err == nil && p.gzip {
		p.out = p.sum.appendTrailer(p.out)
		p.flush()
	}
	return p.err
}

// drain waits for the queued jobs. It writes them unless there was an error.
func (p *pipeline) drain() {
	for p.pending > 0 {
		<-p.ring[p.first].done
		p.writeFirst()
	}
}

// release ends the workers. Without a finish before, the rest is not written.
func (p *pipeline) release() {
	if p.err == nil {
		p.err = io.ErrClosedPipe
	}
	p.drain()
	for range p.workers {
		p.queue <- nil
	}
	p.running.Wait()
	p.openJob().reset()
	if cap(p.out) > keptBytes {
		p.out = nil
	}
	p.w, p.workers, p.first, p.err = nil, 0, 0, nil
	p.sum, p.out, p.started = gzipSum{}, p.out[:0], false
	pipelines.Put(p)
}

// work makes jobs until it receives nil.
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
		// Other goroutines wait for a processor for one job at most.
		runtime.Gosched()
	}
	if d != nil {
		putDeflater(d)
	}
}

// run makes the job. It returns false after a panic, which becomes the job's error.
func (j *job) run(d *metrics.Deflater) (ok bool) {
	defer func() {
		if !ok {
			j.err = fmt.Errorf("make a segment: panic: %v\n%s", recover(), debug.Stack())
		}
	}()
	switch {
	case d != nil:
		if len(j.raw) > 0 {
			j.addDeflated(d.Deflate(j.raw))
		}
		if j.segment != nil {
			j.addDeflated(j.segment.Deflated(d))
		}
	case j.segment != nil:
		if j.borrowed = j.segment.Borrow(); j.borrowed == nil {
			j.raw = j.segment.AppendTo(j.raw)
		}
	}
	return true
}

func (j *job) addDeflated(s metrics.Deflated) {
	j.out = append(j.out, s.Data...)
	j.sum.add(s.CRC, s.Size)
}

func (j *job) reset() {
	if j.borrowed != nil {
		j.segment.Release()
		j.borrowed = nil
	}
	if cap(j.raw) > keptBytes/2 || cap(j.out) > keptBytes/2 {
		j.raw, j.out = nil, nil
	}
	j.raw, j.out = j.raw[:0], j.out[:0]
	j.segment, j.sum, j.err = nil, gzipSum{}, nil
}
