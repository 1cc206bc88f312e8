package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// dropPause is the shortest time between two renewals of a pool: while the right server
// is not found, each call would make all connections anew.
const dropPause = time.Second

// renewable is a pool whose connections can be dropped all at once: when one of them
// says that it leads to the wrong server, the others do too.
type renewable struct {
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

// openRenewable opens a pool of at most conns connections. It connects to nobody.
func openRenewable(config *pgx.ConnConfig, conns int) *renewable {
	p := &renewable{idle: conns}
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

func (p *renewable) current() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.generation
}

// renew closes all connections, those in use when they are given back. It returns false
// if that was done a moment ago.
func (p *renewable) renew() bool {
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
	pool *renewable
}

// Connect implements driver.Connector.
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	return c.Connector.Connect(context.WithValue(ctx, contextKey{}, c.pool.current()))
}

// preferPrimary has the server be looked for that can be written to, if the URL names
// several and does not say which one is wanted: connections would stay with the first
// one that answers, which is a standby after a failover.
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
