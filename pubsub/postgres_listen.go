package pubsub

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// listener is one connection that listens, used by one goroutine.
type listener struct {
	*Postgres
	conn *pgconn.PgConn
	// listens are the channels that the server sends.
	listens map[string]struct{}
	// writable is true if the server could be written to when it was connected.
	writable bool
	// checked is when the server was last seen to answer.
	checked time.Time
}

func newListener(p *Postgres) *listener {
	return &listener{Postgres: p, listens: make(map[string]struct{})}
}

// listen connects, listens and delivers until ctx is cancelled or the
// connection is lost.
func (p *Postgres) listen(ctx context.Context) error {
	l := newListener(p)
	conn, err := p.connect(ctx, l.notified)
	if err != nil {
		return err
	}
	defer hangUp(conn)
	l.conn = conn
	if l.writable, err = l.check(ctx); err != nil {
		return fmt.Errorf("check the connection: %w", err)
	}
	p.server.Add(1)
	defer p.unlisten()
	if err := l.startListening(ctx); err != nil {
		return err
	}
	for {
		if err := l.applyChanges(ctx); err != nil {
			return err
		}
		if err := l.wait(ctx); err != nil {
			return err
		}
	}
}

// startListening listens to all channels that have subscribers, and to pings. Then
// it notifies all subscribers that they may have missed something.
func (l *listener) startListening(ctx context.Context) error {
	if err := l.exec(ctx, listenSQL("LISTEN", l.pings.channel)); err != nil {
		return fmt.Errorf("listen to pings: %w", err)
	}
	l.mu.Lock()
	l.listening = true
	for name := range l.channels {
		l.changes[name] = struct{}{}
	}
	l.mu.Unlock()
	if err := l.applyChanges(ctx); err != nil {
		return err
	}
	l.resynchronise()
	l.pings.restart()
	l.link.noteConnected()
	return nil
}

// unlisten notes that there is no connection any more.
func (p *Postgres) unlisten() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listening, p.wake = false, nil
	clear(p.changes)
	for name, c := range p.channels {
		c.active = false
		c.endWaitLocked()
		if len(c.subscribers) == 0 {
			delete(p.channels, name)
		}
	}
}

// endWaitLocked ends the wait of those who subscribe.
func (c *postgresChannel) endWaitLocked() {
	if c.ready != nil {
		close(c.ready)
		c.ready = nil
	}
}

// resynchronise notifies all subscribers that they may have missed something.
func (p *Postgres) resynchronise() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.channels {
		c.subscribers.offer(nil, p.metrics)
	}
}

// notified takes in a message, which can come with the answer to any command.
func (l *listener) notified(_ *pgconn.PgConn, n *pgconn.Notification) {
	if n.Channel == l.pings.channel {
		if l.pings.handlePing([]byte(n.Payload)) {
			l.resynchronise()
		}
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.channels[n.Channel]; c != nil && c.active {
		c.subscribers.offer(fromServer([]byte(n.Payload)), l.metrics)
	}
}

// applyChanges has the server send channels that have got their first subscriber,
// and end those that lost their last.
func (l *listener) applyChanges(ctx context.Context) error {
	listen, unlisten := l.takeChanges()
	if len(listen)+len(unlisten) == 0 {
		return nil
	}
	sql := listenSQL("UNLISTEN", unlisten...) + listenSQL("LISTEN", listen...)
	if err := l.exec(ctx, sql); err != nil {
		return fmt.Errorf("listen to channels: %w", err)
	}
	l.noteChanges(listen, unlisten)
	return nil
}

// noteChanges notes that the server did what takeChanges returned.
func (l *listener) noteChanges(listen, unlisten []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range unlisten {
		delete(l.listens, name)
	}
	for _, name := range listen {
		l.listens[name] = struct{}{}
		c := l.channels[name]
		c.active = true
		c.endWaitLocked()
	}
}

// takeChanges returns what applyChanges has to do. Channels to be left are not
// active from now on: a subscriber that comes now waits for the next applyChanges.
func (l *listener) takeChanges() (listen, unlisten []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name := range l.changes {
		c := l.channels[name]
		_, listens := l.listens[name]
		wanted := c != nil && len(c.subscribers) > 0
		if c != nil && !wanted {
			delete(l.channels, name)
		}
		switch {
		case wanted && !listens:
			listen = append(listen, name)
		case listens && !wanted:
			unlisten = append(unlisten, name)
		}
	}
	clear(l.changes)
	return listen, unlisten
}

// wait delivers what arrives until there are changes, and checks now and then
// whether the server still answers.
func (l *listener) wait(ctx context.Context) error {
	wait, cancel := context.WithDeadline(ctx, l.checked.Add(l.opts.CheckInterval))
	defer cancel()
	l.mu.Lock()
	changed := len(l.changes) > 0
	l.wake = cancel
	l.mu.Unlock()
	if changed {
		return nil
	}
	// A wait that is cancelled leaves the connection as it was. pgx ends the
	// read by a deadline, and keeps what it had read of a message.
	var err error
	for err == nil {
		err = l.conn.WaitForNotification(wait)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case wait.Err() == nil || l.conn.IsClosed():
		return err
	case errors.Is(wait.Err(), context.DeadlineExceeded):
		writable, err := l.check(ctx)
		if err != nil {
			return fmt.Errorf("check the connection: %w", err)
		}
		if l.writable && !writable {
			return errDemoted
		}
	}
	return nil
}

// errDemoted is why a connection is left that works. An old primary may live on and
// cut nobody, while all others are with the new one.
var errDemoted = errors.New("the server takes no writes any more: it may have been replaced")

// check asks the server whether it can be written to.
func (l *listener) check(ctx context.Context) (writable bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.opts.Timeout)
	defer cancel()
	results, err := l.conn.Exec(ctx, `SELECT NOT (pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean)`).ReadAll()
	if err != nil {
		return false, err
	}
	l.checked = time.Now()
	return len(results) == 1 && len(results[0].Rows) == 1 && string(results[0].Rows[0][0]) == "t", nil
}

// exec runs commands within the timeout. Messages that arrive meanwhile are
// delivered.
func (l *listener) exec(ctx context.Context, sql string) error {
	ctx, cancel := context.WithTimeout(ctx, l.opts.Timeout)
	defer cancel()
	if err := l.conn.Exec(ctx, sql).Close(); err != nil {
		return err
	}
	l.checked = time.Now()
	return nil
}

// listenSQL returns the commands for channels. Their names need no escapes.
func listenSQL(command string, channels ...string) string {
	var sql strings.Builder
	for _, name := range channels {
		fmt.Fprintf(&sql, "%s \"%s\"; ", command, name)
	}
	return sql.String()
}
