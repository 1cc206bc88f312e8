package integration

import (
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// balancer stands for a Service of Kubernetes: each new connection goes to one of the
// endpoints by chance, and stays there whatever becomes of it. Without endpoints it is
// closed.
type balancer struct {
	lis net.Listener

	mu sync.Mutex
	// Guarded by mu.
	endpoints []string
	conns     map[net.Conn]struct{}
}

// newBalancer listens until the test ends.
func newBalancer(t *testing.T) *balancer {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	b := &balancer{lis: lis, conns: make(map[net.Conn]struct{})}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { b.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = lis.Close()
		b.mu.Lock()
		for conn := range b.conns {
			_ = conn.Close()
		}
		b.mu.Unlock()
		serving.Wait()
	})
	return b
}

// set adds an endpoint, or removes it.
func (b *balancer) set(endpoint string, serves bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(b.endpoints, endpoint)
	switch {
	case serves && i < 0:
		b.endpoints = append(b.endpoints, endpoint)
	case !serves && i >= 0:
		b.endpoints = slices.Delete(b.endpoints, i, i+1)
	}
}

// choose returns an endpoint; empty: there is none.
func (b *balancer) choose() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.endpoints) == 0 {
		return ""
	}
	return b.endpoints[rand.IntN(len(b.endpoints))]
}

// keep has a connection closed at the end of the test.
func (b *balancer) keep(conn net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conns[conn] = struct{}{}
}

func (b *balancer) forget(conn net.Conn) {
	_ = conn.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.conns, conn)
}

// serve copies both directions until one side closes.
func (b *balancer) serve(conn net.Conn) {
	b.keep(conn)
	defer b.forget(conn)
	endpoint := b.choose()
	if endpoint == "" {
		return
	}
	// Clients in a cluster have addresses of their own, which limits of the service are per.
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+rand.IntN(250)))}}
	to, err := from.Dial("tcp", endpoint)
	if err != nil {
		return
	}
	b.keep(to)
	defer b.forget(to)
	var copying sync.WaitGroup
	copying.Go(func() {
		_, _ = io.Copy(to, conn)
		_ = to.Close()
		_ = conn.Close()
	})
	_, _ = io.Copy(conn, to)
	_ = to.Close()
	_ = conn.Close()
	copying.Wait()
}
