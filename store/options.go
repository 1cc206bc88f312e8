package store

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Options are the knobs of a Store. A zero field takes its default.
type Options struct {
	// Name is that of the connections to PostgreSQL, for people who look at the server:
	// at most 63 bytes of ASCII. The URL may have another. Default agentstatsd.
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
	// default 50,000. A replica that missed more than that reads all registrations.
	RemovalsKept int
	// NamedKept is how many ids of agents and workspaces that were named again without a
	// change are remembered; default 1,048,576, ten syncs of 100,000 agents. A replica
	// that missed more than that reads all registrations.
	NamedKept int

	// DeploymentID, if it is not zero, becomes that of the database; see
	// Store.Deployment.
	DeploymentID agent.ID

	// ReadConns is how many reads run at once on SQLite; default 4.
	ReadConns int
	// BusyTimeout is how long a statement waits for another process that has
	// locked the SQLite file; default 5 s. A context that ends sooner ends the wait.
	BusyTimeout time.Duration

	// MaxConns is how many connections to PostgreSQL are open at most; default 10.
	MaxConns int
	// StatementTimeout is how long PostgreSQL works on one statement, and waits for the
	// next one in a transaction, at most. For a lock it waits half as long. Default 10
	// s. A large read is several statements; on SQLite, too, it ends when nothing came
	// of it for this long. Migrations have no limit of their own.
	StatementTimeout time.Duration
	// TransactionPooling says that a pooler stands before PostgreSQL which changes the
	// connection behind ours between transactions, like PgBouncer in transaction mode.
	// Then nothing is kept in a session and no statements are prepared.
	// StatementTimeout has no effect, so the same limits should be set on the role.
	// Contexts end statements as ever.
	TransactionPooling bool
}

func (o Options) withDefaults() Options {
	o.Name = cmp.Or(o.Name, "agentstatsd")
	o.RemovalsKept = cmp.Or(o.RemovalsKept, 50_000)
	o.NamedKept = cmp.Or(o.NamedKept, 1<<20)
	o.ReadConns = cmp.Or(o.ReadConns, 4)
	o.BusyTimeout = cmp.Or(o.BusyTimeout, 5*time.Second)
	o.MaxConns = cmp.Or(o.MaxConns, 10)
	o.StatementTimeout = cmp.Or(o.StatementTimeout, 10*time.Second)
	return o
}

func (o Options) validate() error {
	switch {
	case o.URL == "" && o.Path == "":
		return errors.New("path: want that of a database file, as there is no URL")
	case o.URL != "" && !strings.HasPrefix(o.URL, "postgres://") && !strings.HasPrefix(o.URL, "postgresql://"):
		// Without the URL: it may have a password.
		return errors.New("the database URL does not begin with postgres://")
	case o.ReadConns < 0:
		return fmt.Errorf("read conns: want at least 0, got %d", o.ReadConns)
	case o.BusyTimeout < 0:
		return fmt.Errorf("busy timeout: want at least 0, got %v", o.BusyTimeout)
	case o.TouchInterval < 0:
		return fmt.Errorf("touch interval: want at least 0, got %v", o.TouchInterval)
	case o.RemovalsKept < 0:
		return fmt.Errorf("removals kept: want at least 0, got %d", o.RemovalsKept)
	case o.NamedKept < 0:
		return fmt.Errorf("named kept: want at least 0, got %d", o.NamedKept)
	case o.MaxConns < 0:
		return fmt.Errorf("max conns: want at least 0, got %d", o.MaxConns)
	case o.StatementTimeout < time.Millisecond:
		return fmt.Errorf("statement timeout: want at least 1ms, got %v", o.StatementTimeout)
	}
	return nil
}
