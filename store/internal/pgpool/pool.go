// Package pgpool has connections to PostgreSQL that can be dropped all at once. When
// one says that it leads to the wrong server, the others do too.
package pgpool

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// dropPause is the shortest time between two renewals of a pool: while the right server
// is not found, each call would make all connections anew.
const dropPause = time.Second

// Pool is a pool of connections that belong to a generation.
type Pool struct {
	*sql.DB
	idle int

	mu sync.Mutex
	// generation counts the renewals. A connection belongs to the one during which
	// it began to be made.
	generation int64
	renewed    time.Time
}

// generationKey is that of a connection's generation, in contexts and in its custom data.
const generationKey = "agentstatsd generation"

type contextKey struct{}

// Open returns a pool of at most conns connections. It connects to nobody.
func Open(config *pgx.ConnConfig, conns int) *Pool {
	p := &Pool{idle: conns}
	p.DB = sql.OpenDB(connector{stdlib.GetConnector(*config,
		stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
			conn.PgConn().CustomData()[generationKey] = ctx.Value(contextKey{})
			return nil
		}),
		stdlib.OptionResetSession(func(_ context.Context, conn *pgx.Conn) error {
			if conn.PgConn().CustomData()[generationKey] != p.current() {
				return driver.ErrBadConn // to be closed, and replaced by a new one
			}
			return nil
		}),
	), p})
	p.SetMaxOpenConns(conns)
	// As many are kept as there may be: a burst of writes repeats every few
	// seconds. An hour later all are new, so that a server that came back, or
	// a new one behind the same name, gets its share.
	p.SetMaxIdleConns(conns)
	p.SetConnMaxIdleTime(5 * time.Minute)
	p.SetConnMaxLifetime(time.Hour)
	return p
}

func (p *Pool) current() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.generation
}

// Renew closes all connections, those in use when they are given back. It returns false
// if that was done a moment ago.
func (p *Pool) Renew() bool {
	p.mu.Lock()
	now := time.Now()
	if now.Sub(p.renewed) < dropPause {
		p.mu.Unlock()
		return false
	}
	p.renewed = now
	p.generation++
	p.mu.Unlock()
	p.SetMaxIdleConns(-1) // closes those that are idle
	p.SetMaxIdleConns(p.idle)
	return true
}

// connector makes connections that know their generation.
type connector struct {
	driver.Connector
	pool *Pool
}

// Connect implements driver.Connector.
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	return c.Connector.Connect(context.WithValue(ctx, contextKey{}, c.pool.current()))
}

// PreferPrimary has connections lead to a server that can be written to, if the URL
// names several and does not say which one is wanted. Else they would stay with the
// first one that answers, which is a standby after a failover.
func PreferPrimary(config *pgconn.Config) {
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

// Dialer returns a dialer of connections that end when the server is silent. It is
// silent when it confirms nothing for that long, whether somebody waits for an answer
// or not.
func Dialer(silence time.Duration) *net.Dialer {
	return &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silence / 2, Interval: silence / 6, Count: 3},
		Control:         endSilence(silence),
	}
}
