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
)

var (
	mu    sync.Mutex
	given = make(map[int]struct{})
)

// Port returns a port of 127.0.0.1 that nobody listens on, and that it has not
// returned in this process before.
func Port() int {
	mu.Lock()
	defer mu.Unlock()
	for {
		port := lowest + rand.IntN(highest-lowest+1)
		if _, used := given[port]; used {
			continue
		}
		lis, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr(port))
		if err != nil {
			continue
		}
		_ = lis.Close()
		given[port] = struct{}{}
		return port
	}
}

// Addr is Port as host:port.
func Addr() string { return addr(Port()) }

func addr(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
