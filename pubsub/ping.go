package pubsub

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"
)

// pinger sends messages to the engine itself on a channel of its own: they
// show how long delivery takes, and that what a server takes it also delivers
// (PgBouncer in transaction mode takes a LISTEN and delivers nothing).
type pinger struct {
	channel  string
	interval time.Duration
	metrics  *metrics
	again    chan struct{} // a connection was made: ping now

	mu sync.Mutex
	// nonce is of the ping under way, empty if there is none.
	nonce string
	sent  time.Time
	// missing is true from a ping that did not arrive until one that does.
	missing bool
}

func newPinger(interval time.Duration, m *metrics) *pinger {
	return &pinger{
		channel:  "agentstatsd_ping_" + rand.Text(),
		interval: interval,
		metrics:  m,
		again:    make(chan struct{}, 1),
	}
}

// connected begins anew on a new connection: pings on the old one may be lost.
func (p *pinger) connected() {
	p.mu.Lock()
	p.nonce, p.missing = "", false
	p.mu.Unlock()
	select {
	case p.again <- struct{}{}:
	default:
	}
}

// run pings by publish, at once when connected and then each interval, until
// ctx is cancelled.
func (p *pinger) run(ctx context.Context, publish func(ctx context.Context, channel string, payload []byte) error) {
	ticker := time.NewTicker(p.interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.again:
			ticker.Reset(p.interval)
		case <-ticker.C:
		}
		nonce := p.start()
		if err := publish(ctx, p.channel, []byte(nonce)); err != nil {
			// Not sent, or not known to be: no reason to wait for it.
			p.forget(nonce)
		}
	}
}

// start returns the nonce of a new ping; one before it that is still under way
// is missing.
func (p *pinger) start() (nonce string) {
	nonce = rand.Text()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.missing = p.missing || p.nonce != ""
	p.nonce, p.sent = nonce, time.Now()
	return nonce
}

func (p *pinger) forget(nonce string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nonce == nonce {
		p.nonce = ""
	}
}

// arrived takes in a ping. It returns true if one before it was missing: then
// other messages may be too.
func (p *pinger) arrived(payload []byte) (missed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nonce == "" || string(payload) != p.nonce {
		return false
	}
	p.metrics.deliveryLatency.Observe(time.Since(p.sent).Seconds())
	missed = p.missing
	p.nonce, p.missing = "", false
	return missed
}

// err returns an error while what is published does not arrive.
func (p *pinger) err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.missing {
		return fmt.Errorf("messages do not arrive: one to itself was not delivered within %s", p.interval)
	}
	return nil
}
