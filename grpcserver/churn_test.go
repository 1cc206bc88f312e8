package grpcserver

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// nth returns the nth network of a site.
func nth(n int) netip.Prefix {
	var ip [16]byte
	binary.BigEndian.PutUint64(ip[:], 0x2001_0db8_0000_0000+uint64(n))
	return netip.PrefixFrom(netip.AddrFrom16(ip), 64)
}

// Addresses beyond those that are counted apart share one allowance. They take no more
// memory and are limited, too. Known addresses keep their allowances.
func TestChurnOfManyAddresses(t *testing.T) {
	const burst = 10
	c := newChurn(100, burst)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for n := range maxChurnAddresses {
		require.True(t, c.allow(nth(n), now))
	}
	allowed := 0
	for n := range 1000 {
		if c.allow(nth(maxChurnAddresses+n), now) {
			allowed++
		}
	}
	require.Equal(t, burst, allowed, "of all that are not known, together")
	require.LessOrEqual(t, len(c.addresses), maxChurnAddresses+1)
	require.Equal(t, now, c.prunedAt, "once for all of them")
	for range burst - 1 {
		require.True(t, c.allow(nth(0), now), "what it has left")
	}
	require.False(t, c.allow(nth(0), now))

	// What is given back goes to whom it was taken of.
	c.refund(nth(maxChurnAddresses), 3, now)
	c.refund(nth(0), 2, now)
	allowed = 0
	for n := range 1000 {
		if c.allow(nth(maxChurnAddresses+n), now) {
			allowed++
		}
	}
	require.Equal(t, 3, allowed)
	require.True(t, c.allow(nth(0), now))
	require.True(t, c.allow(nth(0), now))
	require.False(t, c.allow(nth(0), now))

	// Those that are forgotten had all of it, and leave room for new ones.
	now = now.Add(prunePause - time.Millisecond)
	allowed = 0
	for n := range 1000 {
		if c.allow(nth(maxChurnAddresses+n), now) {
			allowed++
		}
	}
	require.InDelta(t, burst, allowed, 1, "nobody is looked for again so soon")
	now = now.Add(time.Millisecond)
	for n := range 1000 {
		for range burst {
			require.True(t, c.allow(nth(maxChurnAddresses+n), now), "it has an allowance of its own")
		}
		require.False(t, c.allow(nth(maxChurnAddresses+n), now))
	}
	require.LessOrEqual(t, len(c.addresses), 1002)
}
