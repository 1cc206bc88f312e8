package pubsub

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
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
	log      *slog.Logger
	hint     string        // why pings may not arrive, for the log
	again    chan struct{} // a connection was made: ping now

	mu sync.Mutex
	// nonce is of the ping under way, empty if there is none.
	nonce string
	sent  time.Time
	// wait is the time that it has to arrive.
	wait time.Duration
	// missing is the time within which a ping did not arrive, until one does; 0: they do.
	missing time.Duration
	// told is true once it was logged that pings do not arrive, until one does.
	told bool
}

// firstPing is how long the first ping on a connection may take, if that is
// shorter than the interval: what is wrong from the beginning is said soon.
const firstPing = 5 * time.Second

func newPinger(interval time.Duration, hint string, m *metrics, log *slog.Logger) *pinger {
	return &pinger{
		log:      log,
		hint:     hint,
		channel:  "agentstatsd_ping_" + rand.Text(),
		interval: interval,
		metrics:  m,
		again:    make(chan struct{}, 1),
	}
}

// connected begins anew on a new connection: pings on the old one may be lost.
func (p *pinger) connected() {
	p.mu.Lock()
	p.nonce, p.missing = "", 0
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
		wait := p.interval
		select {
		case <-ctx.Done():
			return
		case <-p.again:
			wait = min(firstPing, p.interval)
		case <-ticker.C:
		}
		ticker.Reset(wait)
		nonce := p.start(wait)
		if err := publish(ctx, p.channel, []byte(nonce)); err != nil {
			// Not sent, or not known to be: no reason to wait for it.
			p.forget(nonce)
		}
	}
}

// start returns the nonce of a new ping, which has that time to arrive; one before it
// that is still under way is missing.
func (p *pinger) start(wait time.Duration) (nonce string) {
	nonce = rand.Text()
	p.mu.Lock()
	if p.nonce != "" {
		p.missing = p.wait
	}
	tell := p.missing != 0 && !p.told
	p.told = p.told || tell
	p.nonce, p.sent, p.wait = nonce, time.Now(), wait
	p.mu.Unlock()
	if tell {
		p.log.Warn("what is sent by the pubsub does not arrive", "hint", p.hint)
	}
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
	if p.nonce == "" || string(payload) != p.nonce {
		p.mu.Unlock()
		return false
	}
	p.metrics.deliveryLatency.Observe(time.Since(p.sent).Seconds())
	missed, told := p.missing != 0, p.told
	p.nonce, p.missing, p.told = "", 0, false
	p.mu.Unlock()
	if told {
		p.log.Info("what is sent by the pubsub arrives again")
	}
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
