package simulate

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/coder/agentstatsd/client"
)

// targetTimeout bounds the connect to one of several targets. An attempt has 10 s. So a
// target that drops packets leaves time for others.
const targetTimeout = 3 * time.Second

// dialFunc connects to an address.
type dialFunc func(ctx context.Context, address string) (net.Conn, error)

// balancer dials the connections of one client like a load balancer of connections. It
// picks a target at random, and another one if that cannot be reached. The client has
// one connection at a time.
type balancer struct {
	targets []string
	connect dialFunc
	// restless connections never go to the last target if there is another.
	restless bool

	mu sync.Mutex
	// Guarded by mu.
	random *rand.Rand
	// last is the index of the target that conn, the newest connection, goes to;
	// -1: there was none.
	last int
	conn net.Conn
	// elsewhere is true if the next connection is to go to another target.
	elsewhere bool
	// open is true while the client has a session that move has not broken.
	open bool
}

func newBalancer(targets []string, connect dialFunc, random *rand.Rand) *balancer {
	return &balancer{targets: targets, connect: connect, random: random, last: -1}
}

// dial connects to a target. It is a grpc.WithContextDialer; the address that
// gRPC resolved does not matter.
func (b *balancer) dial(ctx context.Context, _ string) (net.Conn, error) {
	var errs []error
	for _, i := range b.order() {
		conn, err := b.dialTarget(ctx, i)
		if err == nil {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.last, b.conn, b.elsewhere = i, conn, b.restless
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func (b *balancer) dialTarget(ctx context.Context, i int) (net.Conn, error) {
	if len(b.targets) > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, targetTimeout)
		defer cancel()
	}
	return b.connect(ctx, b.targets[i])
}

// order returns the indexes of the targets in the order in which to try them.
func (b *balancer) order() []int {
	b.mu.Lock()
	defer b.mu.Unlock()
	order := b.random.Perm(len(b.targets))
	if b.elsewhere {
		if at := slices.Index(order, b.last); at >= 0 {
			order = append(slices.Delete(order, at, at+1), b.last)
		}
	}
	return order
}

// onState handles a state of the client. A target whose connection led to no session is
// not tried next.
func (b *balancer) onState(s client.State) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch s.Connection {
	case client.Connected:
		b.open = true
	case client.Waiting:
		b.elsewhere = b.elsewhere || !b.open
		b.open = false
	case client.Stopped:
		b.open = false
	}
}

// move breaks the connection of an open session, whose next one goes to another
// target. It reports whether there was one.
func (b *balancer) move() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open {
		return false
	}
	b.open, b.elsewhere = false, true
	// It may be closed already.
	_ = b.conn.Close()
	return true
}

// targetOf returns the target that conn goes to, if it is the newest connection.
func (b *balancer) targetOf(conn net.Conn) (string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != conn {
		return "", false
	}
	return b.targets[b.last], true
}

// balancedCredentials verify each connection's certificate for the target that it goes
// to.
type balancedCredentials struct {
	credentials.TransportCredentials
	balancer *balancer
}

// ClientHandshake implements credentials.TransportCredentials.
func (c balancedCredentials) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if target, ok := c.balancer.targetOf(conn); ok {
		authority = target
	}
	return c.TransportCredentials.ClientHandshake(ctx, authority, conn)
}

// Clone implements credentials.TransportCredentials.
func (c balancedCredentials) Clone() credentials.TransportCredentials {
	return balancedCredentials{c.TransportCredentials.Clone(), c.balancer}
}
