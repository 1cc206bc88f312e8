package pubsub

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/coder/agentstatsd/internal/outage"
)

// pinger sends messages to the engine itself on a channel of its own. They measure
// how long delivery takes. They also show that what a server takes it delivers:
// PgBouncer in transaction mode takes a LISTEN and delivers nothing.
type pinger struct {
	channel  string
	interval time.Duration
	metrics  *metrics
	outage   *outage.Log
	hint     string        // why pings may not arrive, for the log
	pingNow  chan struct{} // a connection was made: ping now

	mu sync.Mutex
	// nonce is of the ping under way, empty if there is none.
	nonce string
	sent  time.Time
	// wait is the time that it has to arrive.
	wait time.Duration
	// missing is the time within which a ping did not arrive, until one does; 0: they do.
	missing time.Duration
}

// firstPing bounds the first ping on a connection, if that is shorter than the
// interval: what is wrong from the beginning is logged soon.
const firstPing = 5 * time.Second

func newPinger(interval time.Duration, hint string, m *metrics, log *slog.Logger) *pinger {
	return &pinger{
		outage:   outage.New(log, "what is sent by the pubsub does not arrive", "what is sent by the pubsub arrives again"),
		hint:     hint,
		channel:  "agentstatsd_ping_" + rand.Text(),
		interval: interval,
		metrics:  m,
		pingNow:  make(chan struct{}, 1),
	}
}

// restart forgets the ping under way and sends one on the new connection.
func (p *pinger) restart() {
	p.mu.Lock()
	p.nonce, p.missing = "", 0
	p.mu.Unlock()
	select {
	case p.pingNow <- struct{}{}:
	default:
	}
}

// run pings by publish, at once when connected and then each interval, until
// ctx is cancelled.
func (p *pinger) run(ctx context.Context, publish func(ctx context.Context, channel string, payload []byte) error) {
	ticker := time.NewTicker(p.interval)
	defer ticker.Stop()
	for {
		wait := p.interval
		select {
		case <-ctx.Done():
			return
		case <-p.pingNow:
			wait = min(firstPing, p.interval)
		case <-ticker.C:
		}
		ticker.Reset(wait)
		nonce := p.startPing(wait)
		if err := publish(ctx, p.channel, []byte(nonce)); err != nil {
			// Not sent, or not known to be: no reason to wait for it.
			p.cancelPing(nonce)
		}
	}
}

// startPing returns the nonce of a new ping, which has wait to arrive. One before
// it that is still under way is missing.
func (p *pinger) startPing(wait time.Duration) (nonce string) {
	nonce = rand.Text()
	p.mu.Lock()
	if p.nonce != "" {
		p.missing = p.wait
	}
	p.nonce, p.sent, p.wait = nonce, time.Now(), wait
	p.mu.Unlock()
	if err := p.err(); err != nil {
		p.outage.Failed(context.Background(), err, "hint", p.hint)
	}
	return nonce
}

func (p *pinger) cancelPing(nonce string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nonce == nonce {
		p.nonce = ""
	}
}

// handlePing takes in a ping that arrived. It returns true if one before it was
// missing: then other messages may be too.
func (p *pinger) handlePing(payload []byte) (missed bool) {
	p.mu.Lock()
	if p.nonce == "" || string(payload) != p.nonce {
		p.mu.Unlock()
		return false
	}
	p.metrics.deliveryLatency.Observe(time.Since(p.sent).Seconds())
	missed = p.missing != 0
	p.nonce, p.missing = "", 0
	p.mu.Unlock()
	p.outage.Works(context.Background())
	return missed
}

// err returns an error while what is published does not arrive.
func (p *pinger) err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.missing != 0 {
		return fmt.Errorf("messages do not arrive: one to itself was not delivered within %s", p.missing)
	}
	return nil
}
