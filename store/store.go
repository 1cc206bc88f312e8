// Package store keeps registrations, states, sessions and metadata of agents,
// and what the replicas of this service know of each other, in a SQL database:
// SQLite in a file, for one process, or PostgreSQL, 14 or newer, for several.
//
// The methods and what they promise are the same on both. On PostgreSQL a call
// that writes many rows is a few statements, whatever their number, and what
// other replicas write at the same time is either waited for or told as an
// error: see agent.ErrOutdated.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
)

// Options of a Store.
type Options struct {
	// Name is that of the connections to PostgreSQL, for people who look at the server:
	// at most 63 bytes of ASCII. The URL may have another. Empty means agentstatsd.
	Name string
	// URL of a PostgreSQL database, with the scheme postgres or postgresql; what
	// it leaves out is taken from the environment variables of libpq, like
	// PGPASSFILE. Empty: SQLite.
	URL string
	// Path of the SQLite file. It and its directory are made if they do not
	// exist, readable by the owner only. Required, and used, if there is no URL.
	Path string

	// TouchInterval is after how long a value that is reported again unchanged
	// is written again, with its newer time; 0: each time.
	TouchInterval time.Duration
	// RemovalsKept is how many removals of agents and workspaces are remembered;
	// 0: 50,000. A replica that missed more than that reads all registrations.
	RemovalsKept int

	// DeploymentID, if it is not zero, becomes that of the database; see
	// Store.Deployment.
	DeploymentID agent.ID

	// ReadConns is how many reads run at once on SQLite; 0: 4.
	ReadConns int
	// BusyTimeout is how long a statement waits for another process that has
	// locked the SQLite file; 0: 5 s. A context that ends sooner ends the wait.
	BusyTimeout time.Duration

	// MaxConns is how many connections to PostgreSQL are open at most; 0: 10.
	MaxConns int
	// StatementTimeout is how long PostgreSQL works on one statement, and waits
	// for the next one in a transaction, at most; for a lock half as long. 0:
	// 10 s. A large read is several statements; on SQLite, too, it ends when
	// nothing came of it for this long. Migrations have no limit of their own.
	StatementTimeout time.Duration
	// TransactionPooling says that a pooler stands before PostgreSQL which
	// changes the connection behind ours between transactions, like PgBouncer in
	// transaction mode. Then nothing is kept in a session: no statements are
	// prepared, and StatementTimeout has no effect, so the same limits should be
	// set on the role. Contexts end statements as ever.
	TransactionPooling bool
}

func (o *Options) validate() error {
	if o.ReadConns == 0 {
		o.ReadConns = 4
	}
	if o.BusyTimeout == 0 {
		o.BusyTimeout = 5 * time.Second
	}
	if o.RemovalsKept == 0 {
		o.RemovalsKept = 50_000
	}
	if o.MaxConns == 0 {
		o.MaxConns = 10
	}
	if o.StatementTimeout == 0 {
		o.StatementTimeout = 10 * time.Second
	}
	switch {
	case o.URL == "" && o.Path == "":
		return errors.New("store: no path of a database file, and no URL")
	case o.URL != "" && !strings.HasPrefix(o.URL, "postgres://") && !strings.HasPrefix(o.URL, "postgresql://"):
		// Without the URL: it may hold a password.
		return errors.New("store: the database URL does not begin with postgres://")
	case o.ReadConns < 0:
		return fmt.Errorf("store: %d read connections", o.ReadConns)
	case o.BusyTimeout < 0:
		return fmt.Errorf("store: busy timeout %v is negative", o.BusyTimeout)
	case o.TouchInterval < 0:
		return fmt.Errorf("store: touch interval %v is negative", o.TouchInterval)
	case o.RemovalsKept < 0:
		return fmt.Errorf("store: %d removals kept", o.RemovalsKept)
	case o.MaxConns < 0:
		return fmt.Errorf("store: %d connections", o.MaxConns)
	case o.StatementTimeout < time.Millisecond:
		return fmt.Errorf("store: statement timeout %v is below 1ms", o.StatementTimeout)
	}
	return nil
}

// Store is an open database. Its methods are safe for concurrent use, and end
// with an error soon after their context does. A row that cannot be decoded is
// counted, logged once and left out, and the rest of a read goes on. Errors that writing again
// cannot cure wrap agent.ErrRejected, those of a database that says that nobody
// can use it agent.ErrStoreDown. After an error nothing of the call was
// written, unless the answer of PostgreSQL was lost or not waited for: then all
// of it may have been.
type Store struct {
	dialect *dialect
	log     *slog.Logger
	// undecodable has the rows that reads skip.
	undecodable *undecodable
	// writer and reader are one pool on PostgreSQL.
	writer *sql.DB
	reader *sql.DB

	touchInterval time.Duration
	removalsKept  int
	// renew drops all connections, if it was not done a moment ago; nil: there is
	// nothing to drop.
	renew func() bool
	// patience is how long a large read may stand still.
	patience time.Duration
	// deployment is that of when the database was opened.
	deployment agent.ID
	history    history
	servers    servers
	// buildsSwept is up to where old records of builds were looked for.
	buildsSwept atomic.Pointer[agent.ID]
	// rewriteUntil, in nanoseconds since 1970: see UpsertMetadata.
	rewriteUntil atomic.Int64
}

// Open opens the database and brings its schema up to date. A schema that a
// newer version of this program made is an error. It blocks for as long as the
// migrations take, those of another replica included.
func Open(ctx context.Context, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Store, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	open := openSQLite
	if opts.URL != "" {
		open = openPostgres
	}
	s, err := open(ctx, opts, log)
	if err != nil {
		return nil, err
	}
	s.undecodable = newUndecodable(reg, log)
	return s, nil
}

// opened takes in what came of opening the database.
func (s *Store) opened(ctx context.Context, o opened) {
	if o.from != o.to {
		s.log.InfoContext(ctx, "database migrated", "from_version", o.from, "to_version", o.to)
	}
	o.deployment.log(ctx, s.log)
	s.deployment = o.deployment.id
}

// Ping reads from the database.
func (s *Store) Ping(ctx context.Context) error {
	return s.read(ctx, "ping database", func(q querier) error {
		return query(ctx, q, `SELECT 1 FROM `+versionTable+` LIMIT 1`, nil, func(*sql.Rows) error { return nil })
	})
}

// Close waits for the calls under way and closes the database. It is safe to
// repeat.
func (s *Store) Close() error {
	// The last connection to close moves SQLite's write-ahead log into the file.
	if err := errors.Join(s.reader.Close(), s.writer.Close()); err != nil {
		return fmt.Errorf("close database: %w", err)
	}
	return nil
}
