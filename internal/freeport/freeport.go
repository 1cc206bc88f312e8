// Package freeport chooses addresses for tests whose servers must start, and start
// again, where they were asked to.
package freeport

import (
	"context"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// The ports are below those that systems assign to clients and to listeners on port 0
// (from 32,768 on Linux). So no one else gets a port while its server is not running.
const (
	lowest  = 15_000
	highest = 31_999
	// blockPorts are the ports of a block: few processes need more than one, and there are
	// 170 of them.
	blockPorts = 100
)

// ports gives ports of blocks that it has for itself: it listens on the first port of each.
// Tests of other packages are other processes, and run at the same time.
type ports struct {
	mu sync.Mutex
	// Guarded by mu.

	blocks []net.Listener
	unused []int // ports of the newest block
}

var ofProcess ports

// Port returns a port of 127.0.0.1 that nobody listens on, and that no process that is
// still running has got from this package.
func Port() int { return ofProcess.next() }

// Addr is Port as host:port.
func Addr() string { return addr(Port()) }

func (p *ports) next() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if len(p.unused) == 0 {
			p.takeBlockLocked()
		}
		port := p.unused[0]
		p.unused = p.unused[1:]
		if lis, err := listen(port); err == nil {
			_ = lis.Close()
			return port
		}
	}
}

// takeBlockLocked takes a block that nobody has.
func (p *ports) takeBlockLocked() {
	for {
		first := lowest + blockPorts*rand.IntN((highest-lowest+1)/blockPorts)
		lis, err := listen(first)
		if err != nil {
			continue
		}
		p.blocks = append(p.blocks, lis)
		for port := first + 1; port < first+blockPorts; port++ {
			p.unused = append(p.unused, port)
		}
		return
	}
}

func listen(port int) (net.Listener, error) {
	return (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr(port))
}

func addr(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
