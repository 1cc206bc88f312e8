// Package pages hands the rows of a large read on, some at a time, while more are read.
package pages

import (
	"errors"
	"sync"
)

// ErrStopped is what a read ends with to which add returned nil.
var ErrStopped = errors.New("the rows are not handled any more")

// Each calls handle with the rows that read adds, at most size at a time, in their order.
// handle runs in this goroutine, read in another one, which is at most three pages ahead.
// A page is valid until handle returns, and its rows are used again: read fills the row
// that add returns. After an error of handle, add returns nil, and read is to end with
// ErrStopped. Each returns that of handle, or else of read, when both have ended.
func Each[Row any](size int, read func(add func() *Row) error, handle func([]Row) error) error {
	p := pipe[Row]{size: size, full: make(chan []Row, 1), free: make(chan []Row, 2), stopped: make(chan struct{})}
	result := make(chan error, 1)
	go func() {
		err := read(p.add)
		if err == nil && len(p.page) > 0 {
			p.pass()
		}
		close(p.full)
		result <- err
	}()
	stop := sync.OnceFunc(func() { close(p.stopped) })
	defer func() { // also of a handle that panics
		stop()
		for range p.full {
		}
	}()
	var handled error
	for page := range p.full {
		if handled = handle(page); handled != nil {
			stop()
			break
		}
		select {
		case p.free <- page[:0]:
		default:
		}
	}
	if err := <-result; handled == nil {
		return err
	}
	return handled
}

// pipe has the pages that go from one goroutine to the other, and back.
type pipe[Row any] struct {
	size       int
	page       []Row // that is being filled
	full, free chan []Row
	stopped    chan struct{}
}

// add returns a row to fill; nil: nobody wants more.
func (p *pipe[Row]) add() *Row {
	if len(p.page) == p.size && !p.pass() {
		return nil
	}
	if len(p.page) < cap(p.page) {
		p.page = p.page[:len(p.page)+1]
	} else {
		p.page = append(p.page, *new(Row))
	}
	return &p.page[len(p.page)-1]
}

// pass passes the page on, unless nobody wants it, and begins another one.
func (p *pipe[Row]) pass() bool {
	select {
	case p.full <- p.page:
	case <-p.stopped:
		return false
	}
	select {
	case p.page = <-p.free:
	default:
		p.page = nil
	}
	return true
}
