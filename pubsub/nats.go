package pubsub

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/recurring"
)

const (
	// subjectPrefix is before a channel's name in its subject: a user of the
	// server needs to publish and subscribe to agentstatsd.> only.
	subjectPrefix = "agentstatsd."
	// maxReceived is how many messages may wait between the connection and the
	// queues of subscribers: 8 MB a channel. Handing them over waits for
	// nobody, so that more than a few do only if the process has no CPU.
	maxReceived = 1024
)

// NATS is an Engine over core NATS. While a replica is not connected it misses what
// is published; subscribers are notified of that.
type NATS struct {
	url     string
	opts    Options
	log     *slog.Logger
	metrics *metrics
	link    *link
	pings   *pinger

	// subscribeMu is locked while subscriptions are made and ended on the server,
	// which may block; before mu.
	subscribeMu sync.Mutex

	mu sync.Mutex
	// conn is nil before and after Run.
	conn *nats.Conn
	// tooSmall is why messages cannot be sent, not in parts either; nil: they can.
	tooSmall error
	channels map[string]*natsChannel

	// sendMu is locked while the parts of a message are handed to the connection,
	// so that parts of several messages do not mix.
	sendMu sync.Mutex
	parts  splitter
}

// natsChannel is one subscription on the server and who shares it.
type natsChannel struct {
	// subscription is nil while there is no conn. NATS.subscribeMu guards it.
	subscription *nats.Subscription

	// NATS.mu guards these.
	subscribers audience
	parts       assembler
	// dropped is how many messages the subscription had lost when subscribers were
	// last notified of that.
	dropped int
}

// NewNATS returns a NATS that will connect to url. It is nats:// or tls://, with
// user and password, or a token, before the host. Several are separated by commas.
// Other servers of the cluster are used too, as servers announce them. With tls://
// TLS is required: the server's certificate is checked by the system's roots. It
// does not connect.
func NewNATS(url string, opts Options, reg prometheus.Registerer, log *slog.Logger) (*NATS, error) {
	for part := range strings.SplitSeq(url, ",") {
		if err := checkURL(strings.TrimSpace(part), "nats", "tls"); err != nil {
			return nil, fmt.Errorf("pubsub: NATS: %w", err)
		}
	}
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("pubsub options: %w", err)
	}
	n := &NATS{url: url, opts: opts, log: log, channels: make(map[string]*natsChannel), parts: newSplitter()}
	var err error
	if n.metrics, err = newMetrics(reg); err != nil {
		return nil, fmt.Errorf("pubsub: %w", err)
	}
	if err := registerConnected(reg, n); err != nil {
		return nil, fmt.Errorf("pubsub: %w", err)
	}
	n.link = newLink(n.metrics, log)
	n.pings = newPinger(opts.PingInterval, "the user may lack the right to publish and subscribe to "+subjectPrefix+">", n.metrics, log)
	return n, nil
}

// Connected is as in Engine.
func (n *NATS) Connected() error {
	n.mu.Lock()
	conn, tooSmall := n.conn, n.tooSmall
	n.mu.Unlock()
	if err := n.link.err(); err != nil {
		return err
	}
	// The link knows of a loss a moment later.
	// The link knows of a loss a moment later.
	if conn == nil || !conn.IsConnected() {
		return fmt.Errorf("no connection to the pubsub: %w", nats.ErrDisconnected)
	}
	if tooSmall != nil {
		return tooSmall
	}
	return n.pings.err()
}

// Run is as in Engine. It returns an error if the connection was closed for
// good, which only the client library could do.
func (n *NATS) Run(ctx context.Context) error {
	made, closed := make(chan struct{}, 1), make(chan struct{})
	conn, err := nats.Connect(n.url, n.options(ctx, made, closed)...)
	if err != nil {
		return fmt.Errorf("pubsub: connect to NATS: %w", err)
	}
	var pings sync.WaitGroup
	defer pings.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer func() {
		conn.Close()
		<-closed
		n.mu.Lock()
		n.conn = nil
		n.mu.Unlock()
		n.link.noteEnded()
	}()
	if err := n.subscribeChannels(conn); err != nil {
		return fmt.Errorf("pubsub: %w", err)
	}
	pings.Go(func() { n.pings.run(ctx, n.send) })
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-closed:
			err := conn.LastError()
			if err == nil {
				err = nats.ErrConnectionClosed
			}
			return fmt.Errorf("pubsub: connection to NATS ended: %w", err)
		case <-made:
			n.connected(ctx, conn)
		}
	}
}

// options returns those of the connection, which is made, and made again, until ctx
// is cancelled. made gets a value each time, closed is closed at the end.
func (n *NATS) options(ctx context.Context, made chan<- struct{}, closed chan<- struct{}) []nats.Option {
	notify := func(*nats.Conn) {
		select {
		case made <- struct{}{}:
		default:
		}
	}
	lost := func(_ *nats.Conn, err error) {
		if err == nil {
			err = nats.ErrDisconnected
		}
		if ctx.Err() == nil {
			n.link.noteLost(err)
		}
	}
	var errs recurring.Events // one can come with each message
	return []nats.Option{
		nats.Name(n.opts.Name),
		nats.Timeout(n.opts.Timeout),
		nats.FlusherTimeout(n.opts.Timeout),
		nats.SetCustomDialer(natsDialer{ctx, n.opts.Timeout}),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		// Credentials can be put right while we try.
		nats.IgnoreAuthErrorAbort(),
		nats.CustomReconnectDelay(reconnects.Delay),
		// Publishing without a connection is an error; nothing is kept.
		nats.ReconnectBufSize(-1),
		// A server that does not answer the first ping until the next is due is
		// lost.
		nats.PingInterval(n.opts.CheckInterval),
		nats.MaxPingsOutstanding(1),
		nats.ConnectHandler(notify),
		nats.ReconnectHandler(notify),
		nats.DisconnectErrHandler(lost),
		nats.ReconnectErrHandler(lost),
		nats.ClosedHandler(func(*nats.Conn) { close(closed) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			errs.Log(ctx, n.log, slog.LevelWarn, "errors", 1, "error on the connection to NATS", "error", redacted{err})
		}),
		nats.LameDuckModeHandler(func(*nats.Conn) {
			n.log.Info("the NATS server is about to stop, and asks to connect elsewhere")
		}),
		nats.DiscoveredServersHandler(func(conn *nats.Conn) {
			n.log.Debug("the NATS cluster has announced servers", "servers", len(conn.DiscoveredServers()))
		}),
	}
}

// natsDialer makes connections that last until Run ends: the client library
// waits for the first answer of a server without regard to that.
type natsDialer struct {
	ctx     context.Context
	timeout time.Duration
}

// Dial is as in nats.CustomDialer.
func (d natsDialer) Dial(network, address string) (net.Conn, error) {
	conn, err := newDialer(d.timeout).DialContext(d.ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &natsConn{conn, context.AfterFunc(d.ctx, func() { _ = conn.Close() })}, nil
}

type natsConn struct {
	net.Conn
	closed func() bool // it needs not be closed any more
}

// Close implements net.Conn.
func (c *natsConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

// subscribeChannels subscribes to the channels that have subscribers. Without a
// connection conn keeps the subscriptions until there is one.
func (n *NATS) subscribeChannels(conn *nats.Conn) error {
	n.subscribeMu.Lock()
	defer n.subscribeMu.Unlock()
	n.mu.Lock()
	n.conn = conn
	channels := maps.Clone(n.channels)
	n.mu.Unlock()
	if _, err := conn.Subscribe(subjectPrefix+n.pings.channel, func(msg *nats.Msg) {
		if n.pings.handlePing(msg.Data) {
			n.resynchronise()
		}
	}); err != nil {
		return fmt.Errorf("subscribe to pings: %w", err)
	}
	for name, c := range channels {
		if err := n.subscribeLocked(conn, name, c); err != nil {
			return err
		}
	}
	return nil
}

// connected follows each connect, when conn has sent its subscriptions: they are in
// effect when it was flushed.
func (n *NATS) connected(ctx context.Context, conn *nats.Conn) {
	if err := n.flush(ctx, conn); err != nil {
		// Lost again, or forced to be: this will be called again.
		n.log.Debug("flush the subscriptions", "error", err)
		return
	}
	n.resynchronise()
	n.pings.restart()
	n.link.noteConnected()
	n.checkLimit(conn)
}

// resynchronise notifies all subscribers that they may have missed something.
func (n *NATS) resynchronise() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.channels {
		c.subscribers.offer(nil, n.metrics)
	}
}

// flush waits until the server has taken all that was sent before. A server that
// does not within the timeout is left, so that subscribers are notified.
func (n *NATS) flush(ctx context.Context, conn *nats.Conn) error {
	bounded, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	defer cancel()
	err := conn.FlushWithContext(bounded)
	if err != nil && ctx.Err() == nil && conn.IsConnected() {
		if again := conn.ForceReconnect(); again != nil {
			return again
		}
	}
	return err
}

// Publish is as in PubSub. It flushes, as otherwise the loss of a message on a
// broken connection would not be noticed. That costs a round trip, which some tens
// of messages a second can afford.
func (n *NATS) Publish(ctx context.Context, channel string, payload []byte) error {
	start := time.Now()
	err := checkMessage(ctx, channel, payload)
	if err == nil {
		if err = n.send(ctx, channel, payload); err != nil {
			err = fmt.Errorf("publish to %q: %w", channel, err)
		}
	}
	n.metrics.countPublish(start, err)
	return err
}

func (n *NATS) send(ctx context.Context, channel string, payload []byte) error {
	ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	defer cancel()
	n.mu.Lock()
	conn := n.conn
	n.mu.Unlock()
	if conn == nil {
		return errNotRunning
	}
	if !conn.IsConnected() {
		return nats.ErrDisconnected
	}
	connects := conn.Stats().Reconnects
	if err := n.publishParts(conn, subjectPrefix+channel, payload); err != nil {
		return err
	}
	if err := conn.FlushWithContext(ctx); err != nil {
		return err
	}
	// A connection that was lost in between drops the message, but the next one
	// answers the flush.
	if conn.Stats().Reconnects != connects {
		return nats.ErrDisconnected
	}
	return nil
}

// Subscribe is as in PubSub. A subscriber that falls queueLength messages
// behind loses those that wait, and is called with nil in their place.
func (n *NATS) Subscribe(channel string, f func(payload []byte)) (cancel func(), err error) {
	if err := checkChannel(channel); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	s := newSubscriber(f)
	conn, err := n.addSubscriber(channel, s)
	n.metrics.subscribers.Inc()
	cancel = sync.OnceFunc(func() {
		n.removeSubscriber(channel, s)
		s.stop()
		n.metrics.subscribers.Dec()
	})
	if err != nil {
		cancel()
		return nil, err
	}
	if conn != nil && conn.IsConnected() {
		// Even if another subscriber has the subscription already: its flush may
		// be under way. If it fails, f is called with nil after the reconnect.
		if err := n.flush(context.Background(), conn); err != nil {
			n.log.Debug("flush a subscription", "channel", channel, "error", err)
		}
	}
	return cancel, nil
}

// addSubscriber makes s a subscriber of channel. It returns the connection; nil:
// there is none.
func (n *NATS) addSubscriber(channel string, s *subscriber) (*nats.Conn, error) {
	n.subscribeMu.Lock()
	defer n.subscribeMu.Unlock()
	n.mu.Lock()
	c := n.channels[channel]
	if c == nil {
		c = &natsChannel{subscribers: make(audience)}
		n.channels[channel] = c
	}
	c.subscribers[s] = struct{}{}
	conn := n.conn
	n.mu.Unlock()
	if conn == nil || c.subscription != nil {
		return conn, nil
	}
	return conn, n.subscribeLocked(conn, channel, c)
}

// subscribeLocked subscribes on the server. The caller has locked subscribeMu.
func (n *NATS) subscribeLocked(conn *nats.Conn, channel string, c *natsChannel) error {
	// The subscription is c's alone: what still arrives for one that has ended
	// never reaches the subscribers of the next.
	subscription, err := conn.Subscribe(subjectPrefix+channel, func(msg *nats.Msg) { n.receive(c, msg) })
	if err != nil {
		return fmt.Errorf("subscribe to %q: %w", channel, err)
	}
	if err := subscription.SetPendingLimits(maxReceived, -1); err != nil {
		return fmt.Errorf("subscribe to %q: %w", channel, err)
	}
	c.subscription = subscription
	return nil
}

// removeSubscriber takes s from channel, and ends the subscription with the last
// subscriber.
func (n *NATS) removeSubscriber(channel string, s *subscriber) {
	n.subscribeMu.Lock()
	defer n.subscribeMu.Unlock()
	n.mu.Lock()
	c := n.channels[channel]
	delete(c.subscribers, s)
	last := len(c.subscribers) == 0
	if last {
		delete(n.channels, channel)
	}
	n.mu.Unlock()
	if last && c.subscription != nil {
		// It fails only on a closed connection, which has none.
		_ = c.subscription.Unsubscribe()
	}
}

// receive is called for each message of a channel, one call at a time.
func (n *NATS) receive(c *natsChannel, msg *nats.Msg) {
	// What was dropped was newer than what waited then, so that each loss is
	// seen by a message that comes after it.
	dropped, err := msg.Sub.Dropped()
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil && dropped != c.dropped {
		n.metrics.droppedConnection.Add(float64(dropped - c.dropped))
		c.dropped = dropped
		c.subscribers.offer(nil, n.metrics)
	}
	payload, err := c.parts.addPart(msg.Data)
	if err == nil && payload == nil && len(msg.Data) > 0 {
		return // more parts follow
	}
	// After an error, and of what no engine publishes, it is nil.
	c.subscribers.offer(fromServer(payload), n.metrics)
}
