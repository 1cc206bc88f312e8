package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store/internal/pgserver"
)

// migrationLock is the first half of the advisory lock of who migrates, "agnt" in
// ASCII; the second is the schema. It is one of the database, not of the server.
const migrationLock int32 = 0x61676e74

// opened is what came of opening a database.
type opened struct {
	from, to   int64 // schema versions
	deployment deployment
}

// beginPatiently begins a transaction without limits of time. They are of it only, so
// this works behind a pooler, too. It is one message: between two of them the limits of
// the session would count. What is waited for is seen, as in all that writes.
const beginPatiently = `BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL statement_timeout = 0;
SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL lock_timeout = 0`

// migration is a transaction that has the lock of the schema.
type migration struct {
	tx     pgx.Tx
	server pgserver.Server
	// db is the transaction's connection. What its user takes for transactions are parts
	// of this one.
	db    *sql.DB
	first *firstFault
}

// migratePostgres calls do in a transaction on a server that is what is needed. The
// transaction begins with a lock, so that replicas that start together agree. A lock of
// the session, as goose takes it, would be lost behind a pooler.
func migratePostgres(ctx context.Context, db *sql.DB, do func(context.Context, migration) error) (err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	return conn.Raw(func(raw any) error {
		inner, ok := raw.(*stdlib.Conn)
		if !ok {
			return fmt.Errorf("connection is a %T", raw)
		}
		return pgx.BeginTxFunc(ctx, inner.Conn(), pgx.TxOptions{BeginQuery: beginPatiently}, func(tx pgx.Tx) error {
			return migrateIn(ctx, tx, inner, do)
		})
	})
}

func migrateIn(ctx context.Context, tx pgx.Tx, conn *stdlib.Conn, do func(context.Context, migration) error) (err error) {
	server, err := pgserver.Inspect(ctx, tx)
	if err != nil {
		return err
	}
	if err := server.Check(); err != nil {
		return err
	}
	config := conn.Conn().Config()
	if err := server.CheckPath(config.RuntimeParams["search_path"]); err != nil {
		return err
	}
	if config.DefaultQueryExecMode == pgx.QueryExecModeExec {
		if err := server.CheckText(); err != nil {
			return err
		}
	}
	_, err = tx.Exec(ctx, fmt.Sprintf(`SELECT pg_advisory_xact_lock(%d, %d)`, migrationLock, int32(server.SchemaOID)))
	if err != nil {
		return fmt.Errorf("lock schema: %w", err)
	}
	nested := nestedConn{Conn: conn, first: &firstFault{}}
	db := sql.OpenDB(nested)
	db.SetMaxOpenConns(1)
	defer func() { err = errors.Join(err, db.Close()) }()
	return do(ctx, migration{tx: tx, server: server, db: db, first: nested.first})
}

// preparePostgres brings the schema up to date and finds the deployment's identity.
func preparePostgres(ctx context.Context, db *sql.DB, forced agent.ID) (out opened, err error) {
	err = migratePostgres(ctx, db, func(ctx context.Context, m migration) (err error) {
		out.from, out.to, err = postgresDialect.schema.Up(ctx, m.db, m.server.MayCreate)
		if err != nil {
			return m.first.cause(err)
		}
		names, err := postgresDialect.schema.Tables()
		if err != nil {
			return err
		}
		if err := pgserver.CheckTables(ctx, m.tx, names); err != nil {
			return err
		}
		where, err := postgresPlace(ctx, m.tx)
		if err != nil {
			return err
		}
		out.deployment, err = postgresDialect.identify(ctx, m.db, where, forced)
		return err
	})
	return out, err
}

// postgresPlace returns where the table of the deployment is. The role may have been
// denied to ask for the cluster.
func postgresPlace(ctx context.Context, tx pgx.Tx) (place, error) {
	var known bool
	var where place
	err := tx.QueryRow(ctx, `
SELECT coalesce(has_function_privilege(to_regprocedure('pg_control_system()')::oid, 'EXECUTE'), false),
    'database ' || (SELECT oid FROM pg_database WHERE datname = current_database())
    || ' table ' || 'agentstatsd_deployment'::regclass::oid`).Scan(&known, &where.object)
	if err != nil {
		return where, fmt.Errorf("find the place of the database: %w", err)
	}
	if known {
		err := tx.QueryRow(ctx, `SELECT system_identifier::text FROM pg_control_system()`).Scan(&where.cluster)
		if err != nil {
			return where, fmt.Errorf("find the cluster of the database: %w", err)
		}
	}
	return where, nil
}

// nestedConn is a connection that is in a transaction, which its user neither ends nor
// knows. What its user takes for transactions are parts of that one. It is its own
// connector.
type nestedConn struct {
	*stdlib.Conn
	first *firstFault
}

// Connect returns the connection.
func (c nestedConn) Connect(context.Context) (driver.Conn, error) { return c, nil }

// Driver returns pgx's.
func (c nestedConn) Driver() driver.Driver { return stdlib.GetDefaultDriver() }

// Close leaves the connection open.
func (c nestedConn) Close() error { return nil }

// ResetSession does nothing: the transaction is to stay.
func (c nestedConn) ResetSession(context.Context) error { return nil }

// ExecContext notes the first error.
func (c nestedConn) ExecContext(ctx context.Context, text string, args []driver.NamedValue) (driver.Result, error) {
	result, err := c.Conn.ExecContext(ctx, text, args)
	return result, c.first.note(err)
}

// QueryContext notes the first error.
func (c nestedConn) QueryContext(ctx context.Context, text string, args []driver.NamedValue) (driver.Rows, error) {
	rows, err := c.Conn.QueryContext(ctx, text, args)
	return rows, c.first.note(err)
}

// BeginTx does nothing.
func (c nestedConn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	return nestedTx{}, nil
}

type nestedTx struct{}

// Commit does nothing: the outer transaction is committed.
func (nestedTx) Commit() error { return nil }

// Rollback does nothing: the outer transaction is rolled back, as the error that
// leads here ends it.
func (nestedTx) Rollback() error { return nil }

// firstFault keeps the first error of the statements of a migration. Later ones
// may only say that the transaction is over because of it.
type firstFault struct{ err error }

func (f *firstFault) note(err error) error {
	if err != nil && f.err == nil {
		f.err = err
	}
	return err
}

// cause returns err, or the first error if err does not wrap it.
func (f *firstFault) cause(err error) error {
	if err == nil || f.err == nil || errors.Is(err, f.err) {
		return err
	}
	return f.err
}
