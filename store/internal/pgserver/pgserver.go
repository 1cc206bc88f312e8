// Package pgserver looks at a PostgreSQL server before it is used: what it lacks, and
// whether a pooler stands before it. It says what the errors of connecting to it mean.
// Its errors are one sentence each, for operators.
package pgserver

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// oldestPostgres is the version that has all that the statements use.
const oldestPostgres = 14

// Server is what a PostgreSQL is like, as far as it matters.
type Server struct {
	// SchemaOID of the schema that tables are made in; 0: there is none.
	SchemaOID uint32

	version  int // major
	encoding string
	standby  bool
	readOnly bool
	schema   string // empty: none of the search_path exists
	creates  bool   // this role may make tables in it
	path     string
	bytea    string // how bytes are shown
}

// Inspect looks at the server of a transaction.
func Inspect(ctx context.Context, tx pgx.Tx) (Server, error) {
	var s Server
	err := tx.QueryRow(ctx, `
SELECT current_setting('server_version_num')::int / 10000, current_setting('server_encoding'),
    pg_is_in_recovery(), current_setting('transaction_read_only')::boolean, coalesce(current_schema()::text, ''),
    coalesce((SELECT oid FROM pg_namespace WHERE nspname = current_schema())::oid, 0),
    coalesce(has_schema_privilege(current_schema()::text, 'CREATE'), false), current_setting('search_path'),
    current_setting('bytea_output')`).Scan(
		&s.version, &s.encoding, &s.standby, &s.readOnly, &s.schema, &s.SchemaOID, &s.creates, &s.path, &s.bytea)
	if err != nil {
		return s, fmt.Errorf("look at the server: %w", err)
	}
	return s, nil
}

// Check returns in one sentence why the service cannot work here.
func (s *Server) Check() error {
	switch {
	case s.version < oldestPostgres:
		return fmt.Errorf("PostgreSQL %d is older than %d, the oldest that this program knows", s.version, oldestPostgres)
	case s.encoding != "UTF8":
		return fmt.Errorf("its encoding is %s, not UTF8: make the database with ENCODING 'UTF8' TEMPLATE template0", s.encoding)
	case s.standby:
		return errors.New("the server is a standby, which cannot be written to: name the primary in the URL, " +
			"or all servers with target_session_attrs=read-write")
	case s.readOnly:
		return errors.New("the server takes no writes (default_transaction_read_only is on): name the primary in the URL, " +
			"or all servers with target_session_attrs=read-write, or let the role write")
	case s.schema == "":
		return errors.New("no schema of the search_path exists for this role: make one (CREATE SCHEMA ... AUTHORIZATION ...) " +
			"and name it by search_path in the URL")
	}
	return nil
}

// CheckPath returns in one sentence why the tables would not be where the URL says; asked
// is its search_path, empty if it has none. A pooler may ignore it: then this would be a
// replica of whoever has the schema that is used instead.
func (s *Server) CheckPath(asked string) error {
	if asked == "" || asked == s.path {
		return nil
	}
	return fmt.Errorf("a pooler ignores the search_path of the URL, %q, and has %q: %s", asked, s.path, pathOfRole)
}

const pathOfRole = "set it on the role (ALTER ROLE ... SET search_path = ...) and leave it out of the URL"

// CheckText returns in one sentence why what is read as text, as it is by a pooler, cannot
// be understood.
func (s *Server) CheckText() error {
	if s.bytea != "hex" {
		return fmt.Errorf("its bytea_output is %s, which this program does not read by a pooler: "+
			"set it on the role (ALTER ROLE ... SET bytea_output = 'hex')", s.bytea)
	}
	return nil
}

// MayCreate returns in one sentence why the schema cannot be brought up to date.
func (s *Server) MayCreate(context.Context) error {
	if !s.creates {
		return fmt.Errorf("the role may not make tables in schema %q: GRANT USAGE, CREATE ON SCHEMA %q to it, "+
			"or make a schema of its own (CREATE SCHEMA ... AUTHORIZATION ...) and name it by search_path in the URL", s.schema, s.schema)
	}
	return nil
}

// CheckTables returns which of the tables this role may not use, as their owner is
// another.
func CheckTables(ctx context.Context, tx pgx.Tx, names []string) error {
	var refused *string
	err := tx.QueryRow(ctx, `
SELECT string_agg(c.relname, ', ' ORDER BY c.relname) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = current_schema() AND c.relname = ANY ($1) AND NOT (
    has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
    AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'))`, names).Scan(&refused)
	if err != nil {
		return fmt.Errorf("look at the rights: %w", err)
	}
	if refused != nil {
		return fmt.Errorf("the role may not read and write all tables: GRANT SELECT, INSERT, UPDATE, DELETE ON %s to it", *refused)
	}
	return nil
}

// CheckPooler returns an error if a pooler stands before the server that changes the
// connection behind ours, and nobody said so. What is prepared or set there would be
// another's at any time.
func CheckPooler(ctx context.Context, db *sql.DB) error {
	first, err := backendOf(ctx, db)
	if err != nil {
		return err
	}
	defer first.close()
	if first.direct || db.Stats().MaxOpenConnections == 1 {
		return nil
	}
	second, err := backendOf(ctx, db)
	if err != nil {
		return err
	}
	defer second.close()
	// Two connections of ours that are open, and one of the server's.
	if first.pid == second.pid {
		return errPooler
	}
	return nil
}

var errPooler = errors.New("a pooler in transaction mode stands before the server: " +
	"set --database-transaction-pooling, and --pubsub-url, as notifications do not arrive through it")

// backend is the server's side of a connection.
type backend struct {
	conn   *sql.Conn
	pid    uint32
	direct bool // the server itself answered the connect
}

func backendOf(ctx context.Context, db *sql.DB) (*backend, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	b := &backend{conn: conn}
	err = conn.Raw(func(raw any) error {
		inner, ok := raw.(*stdlib.Conn)
		if !ok {
			return fmt.Errorf("connection is a %T", raw)
		}
		// No statement is prepared: behind a pooler that would not hold.
		err := inner.Conn().QueryRow(ctx, `SELECT pg_backend_pid()`, pgx.QueryExecModeExec).Scan(&b.pid)
		b.direct = b.pid == inner.Conn().PgConn().PID()
		return err
	})
	if err != nil {
		b.close()
		return nil, fmt.Errorf("look for a pooler: %w", err)
	}
	return b, nil
}

// close gives the connection back.
func (b *backend) close() { _ = b.conn.Close() }

// ExplainOpen makes an error of connecting a sentence, where it is known what it means.
// pooling says that a pooler is declared.
func ExplainOpen(err error, pooling bool) error {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code {
	case "08P01": // protocol_violation
		// PgBouncer's words. It does not keep what is set for a session.
		if pooling {
			return fmt.Errorf("the pooler does not take all parameters of the URL: of search_path, %s (%w)", pathOfRole, err)
		}
		return fmt.Errorf("%w (%w)", errPooler, err)
	case "3D000": // invalid_catalog_name
		return fmt.Errorf("the database does not exist: make it with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0 (%w)", err)
	}
	return err
}
