package grpcserver

import (
	"net/netip"
	"time"
)

// maxChurnAddresses have an allowance each; more share one. An address is forgotten
// once its allowance is full again, by default 10 ms after its last connection. So
// many are not full only at 650,000 connections a second.
const maxChurnAddresses = 1 << 16

// prunePause is the shortest time between two looks for addresses to forget, each of
// which takes some 2 ms.
const prunePause = 100 * time.Millisecond

// churn is a token bucket for each address, of connections and calls without
// authentication. A connection that is authenticated gets a refund: who has a
// credential is not slowed, however many share an address.
type churn struct {
	perSecond, burst float64
	addresses        map[netip.Prefix]*allowance
	prunedAt         time.Time
}

type allowance struct {
	left float64
	at   time.Time
}

func newChurn(perSecond, burst int) *churn {
	return &churn{perSecond: float64(perSecond), burst: float64(burst), addresses: make(map[netip.Prefix]*allowance)}
}

// allow takes one from the address. It returns false if the address has nothing
// left.
func (c *churn) allow(address netip.Prefix, now time.Time) bool {
	a := c.of(address, now)
	c.refill(a, now)
	if a.left < 1 {
		return false
	}
	a.left--
	return true
}

// refund gives n back to the address.
func (c *churn) refund(address netip.Prefix, n int, now time.Time) {
	a := c.of(address, now)
	c.refill(a, now)
	a.left = min(c.burst, a.left+float64(n))
}

func (c *churn) refill(a *allowance, now time.Time) {
	a.left = min(c.burst, a.left+now.Sub(a.at).Seconds()*c.perSecond)
	a.at = now
}

// of returns the allowance of an address. Those that are full are forgotten when
// there are too many.
func (c *churn) of(address netip.Prefix, now time.Time) *allowance {
	if a := c.addresses[address]; a != nil {
		return a
	}
	if len(c.addresses) >= maxChurnAddresses && now.Sub(c.prunedAt) >= prunePause {
		c.prunedAt = now
		c.prune(now)
	}
	if len(c.addresses) >= maxChurnAddresses {
		address = netip.Prefix{} // that of all others
		if a := c.addresses[address]; a != nil {
			return a
		}
	}
	a := &allowance{left: c.burst, at: now}
	c.addresses[address] = a
	return a
}

// prune forgets the addresses that have all of their allowance.
func (c *churn) prune(now time.Time) {
	for address, a := range c.addresses {
		if c.refill(a, now); a.left >= c.burst {
			delete(c.addresses, address)
		}
	}
}
