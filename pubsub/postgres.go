package pubsub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/prometheus/client_golang/prometheus"
)

// Postgres is an Engine over PostgreSQL's NOTIFY. While a replica is not connected
// it misses what is published; subscribers are notified of that. It has two
// connections: one listens, one publishes.
type Postgres struct {
	config  *pgconn.Config
	opts    Options
	log     *slog.Logger
	metrics *metrics
	link    *link
	pings   *pinger

	// publishing has the connection that publishes, which may be none. Who receives
	// it may use it, and sends it back.
	publishing chan publisher
	// server counts the connections that listened. The connection that publishes is
	// on the same server only if it is not older than the newest of them.
	server atomic.Int64

	mu sync.Mutex
	// running ends with Run; nil before and after it.
	running  context.Context
	channels map[string]*postgresChannel
	// listening is true while there is a connection that listens. Then changes are
	// the channels that it has to listen to, or no more, and wake makes it look.
	listening bool
	changes   map[string]struct{}
	wake      context.CancelFunc
}

// publisher is the connection that publishes; nil: there is none.
type publisher struct {
	*pgconn.PgConn
	server int64
}

// postgresChannel has the subscribers of a channel. Postgres.mu guards it.
type postgresChannel struct {
	subscribers audience
	// active is true while the server sends the channel's messages for certain, and
	// has no command to end that. What arrives otherwise is discarded, so that a
	// subscriber gets no message from before a gap.
	active bool
	// ready is closed when active becomes true or the connection is lost; nil:
	// nobody waits for that.
	ready chan struct{}
}

// NewPostgres returns a Postgres that will connect to url, postgres:// with the
// parameters of libpq. url leads to PostgreSQL itself or to a proxy that keeps a
// session on one connection. PgBouncer in transaction mode takes a LISTEN, but
// delivers nothing; Connected returns an error then. NewPostgres does not connect.
func NewPostgres(url string, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Postgres, error) {
	config, err := parsePostgresURL(url)
	if err != nil {
		return nil, fmt.Errorf("pubsub: PostgreSQL: %w", err)
	}
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("pubsub options: %w", err)
	}
	if _, ok := config.RuntimeParams["application_name"]; !ok { // the URL's counts
		config.RuntimeParams["application_name"] = opts.Name
	}
	// Whatever the URL, the role or the database say: text goes as Go has it.
	config.RuntimeParams["client_encoding"] = "UTF8"
	preferPrimary(config)
	p := &Postgres{
		config:     config,
		opts:       opts,
		log:        log,
		publishing: make(chan publisher, 1),
		channels:   make(map[string]*postgresChannel),
		changes:    make(map[string]struct{}),
	}
	if p.metrics, err = newMetrics(reg); err != nil {
		return nil, fmt.Errorf("pubsub: %w", err)
	}
	if err := registerConnected(reg, p); err != nil {
		return nil, fmt.Errorf("pubsub: %w", err)
	}
	p.publishing <- publisher{}
	p.link = newLink(p.metrics, log)
	p.pings = newPinger(opts.PingInterval, "a pooler in transaction mode takes a LISTEN and delivers nothing: name the server itself", p.metrics, log)
	return p, nil
}

// parsePostgresURL returns errors without any secret of text.
func parsePostgresURL(text string) (*pgconn.Config, error) {
	if !strings.HasPrefix(text, "postgres://") && !strings.HasPrefix(text, "postgresql://") {
		return nil, errors.New("the URL does not begin with postgres://")
	}
	config, err := pgconn.ParseConfig(text)
	if err != nil {
		// pgx masks passwords as far as it recognises them.
		if unclear := checkURL(text, "postgres", "postgresql"); unclear != nil {
			return nil, unclear
		}
		return nil, err
	}
	// Names of databases stand in errors.
	if strings.Contains(config.Database, "@") {
		return nil, errURLBehindHost
	}
	return config, nil
}

// preferPrimary makes a connection look for the server that takes writes, as nobody
// listens on a standby. It does so if the URL names several and does not say which
// one is wanted.
func preferPrimary(config *pgconn.Config) {
	if config.ValidateConnect != nil {
		return
	}
	for _, other := range config.Fallbacks {
		if other.Host != config.Host || other.Port != config.Port {
			config.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
			return
		}
	}
}

// Connected is as in Engine.
func (p *Postgres) Connected() error {
	if err := p.link.err(); err != nil {
		return err
	}
	return p.pings.err()
}

// Run is as in Engine.
func (p *Postgres) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	p.mu.Lock()
	p.running = ctx
	p.mu.Unlock()
	var pings sync.WaitGroup
	pings.Go(func() { p.pings.run(ctx, p.send) })
	p.keepListening(ctx)

	p.mu.Lock()
	p.running = nil
	p.mu.Unlock()
	cancel()
	pings.Wait()
	// Whoever publishes now ends with ctx, and nobody connects after this.
	if conn := <-p.publishing; conn.PgConn != nil {
		hangUp(conn.PgConn)
	}
	p.publishing <- publisher{}
	p.link.noteEnded()
	return nil
}

// keepListening connects, and again whenever the connection is lost, until ctx
// is cancelled.
func (p *Postgres) keepListening(ctx context.Context) {
	for failures := 1; ; failures++ {
		start := time.Now()
		err := p.listen(ctx)
		if ctx.Err() != nil {
			return
		}
		p.link.noteLost(err)
		if time.Since(start) > reconnects.Max {
			failures = 1
		}
		if !reconnects.Wait(ctx, failures) {
			return
		}
	}
}

// connect makes a connection within the timeout.
func (p *Postgres) connect(ctx context.Context, notified pgconn.NotificationHandler) (*pgconn.PgConn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.opts.Timeout)
	defer cancel()
	config := p.config.Copy()
	config.OnNotification = notified
	dialer := newDialer(p.opts.Timeout)
	var connected atomic.Bool
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		// pgx tries to cancel a query on a broken connection by another
		// connection; we have no queries that are worth it, nor the time.
		if connected.Load() {
			return nil, net.ErrClosed
		}
		return dialer.DialContext(ctx, network, address)
	}
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	connected.Store(true)
	return conn, nil
}

// hangUp closes conn, and waits until nothing of it is left: not long.
func hangUp(conn *pgconn.PgConn) {
	// Without an error so far it says goodbye.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
	// With one, pgx waits for the server in the background; this ends that.
	_ = conn.Conn().Close()
	<-conn.CleanupDone()
}

// Publish is as in PubSub.
func (p *Postgres) Publish(ctx context.Context, channel string, payload []byte) error {
	start := time.Now()
	err := checkMessage(ctx, channel, payload)
	if err == nil {
		if err = p.send(ctx, channel, payload); err != nil {
			err = fmt.Errorf("publish to %q: %w", channel, err)
		}
	}
	p.metrics.countPublish(start, err)
	return err
}

func (p *Postgres) send(ctx context.Context, channel string, payload []byte) error {
	p.mu.Lock()
	running := p.running
	p.mu.Unlock()
	if running == nil {
		return errNotRunning
	}
	ctx, cancel := context.WithTimeout(ctx, p.opts.Timeout)
	defer cancel()
	defer context.AfterFunc(running, cancel)()

	var conn publisher
	select {
	case conn = <-p.publishing:
	case <-ctx.Done():
		return ctx.Err()
	}
	conn, err := p.sendOn(ctx, conn, channel, payload)
	p.publishing <- conn
	return err
}

// sendOn publishes on conn, which may be none, and returns the connection for the next
// message, none if it broke.
func (p *Postgres) sendOn(ctx context.Context, conn publisher, channel string, payload []byte) (publisher, error) {
	server := p.server.Load()
	if conn.PgConn != nil && conn.server != server {
		// Nobody may listen there any more.
		hangUp(conn.PgConn)
		conn.PgConn = nil
	}
	if conn.PgConn != nil {
		still, err := notify(ctx, conn.PgConn, channel, payload)
		if still != nil || ctx.Err() != nil {
			return publisher{still, server}, err
		}
		// The connection may have been broken since its last use: try a new
		// one. If it broke just now the message may be delivered twice.
	}
	fresh, err := p.connect(ctx, nil)
	if err != nil {
		return publisher{}, err
	}
	fresh, err = notify(ctx, fresh, channel, payload)
	return publisher{fresh, server}, err
}

// notify publishes on conn, and returns it unless it broke. The server does not
// wait for its disk, as the transaction changes no table.
func notify(ctx context.Context, conn *pgconn.PgConn, channel string, payload []byte) (*pgconn.PgConn, error) {
	err := conn.ExecParams(ctx, `SELECT pg_notify($1, $2)`, [][]byte{[]byte(channel), payload},
		[]uint32{pgtype.TextOID, pgtype.TextOID}, nil, nil).Read().Err
	if err != nil && conn.IsClosed() {
		hangUp(conn)
		conn = nil
	}
	return conn, err
}

// Subscribe is as in PubSub. A subscriber that falls queueLength messages
// behind loses those that wait, and is called with nil in their place.
func (p *Postgres) Subscribe(channel string, f func(payload []byte)) (cancel func(), err error) {
	if err := checkChannel(channel); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	s := newSubscriber(f)
	p.metrics.subscribers.Inc()
	if ready := p.addSubscriber(channel, s); ready != nil {
		<-ready // within the timeout
	}
	return sync.OnceFunc(func() {
		p.removeSubscriber(channel, s)
		s.stop()
		p.metrics.subscribers.Dec()
	}), nil
}

// addSubscriber makes s a subscriber of channel. ready is nil if there is nothing
// to wait for. It is closed when the server sends the channel's messages, or when
// the connection is lost.
func (p *Postgres) addSubscriber(channel string, s *subscriber) (ready <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.channels[channel]
	if c == nil {
		c = &postgresChannel{subscribers: make(audience)}
		p.channels[channel] = c
	}
	c.subscribers[s] = struct{}{}
	if c.active || !p.listening {
		return nil
	}
	if c.ready == nil {
		c.ready = make(chan struct{})
	}
	p.changeLocked(channel)
	return c.ready
}

// removeSubscriber takes s from channel.
func (p *Postgres) removeSubscriber(channel string, s *subscriber) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.channels[channel]
	delete(c.subscribers, s)
	switch {
	case len(c.subscribers) > 0:
	case p.listening:
		p.changeLocked(channel)
	default:
		delete(p.channels, channel)
	}
}

// changeLocked makes the connection look at a channel.
func (p *Postgres) changeLocked(channel string) {
	p.changes[channel] = struct{}{}
	if p.wake != nil {
		p.wake()
	}
}
