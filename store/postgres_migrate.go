package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// migrationLock is the advisory lock of who migrates: "agntstat" in ASCII. It is
// one of the database, not of the server.
const migrationLock int64 = 0x61676e7473746174

// oldestPostgres is the version that has all that the statements use.
const oldestPostgres = 14

// migratePostgres brings the schema up to date, in one transaction, which begins
// with a lock: replicas that start together wait for the first. A lock of the
// session, as goose takes it, would be lost behind a pooler.
func migratePostgres(ctx context.Context, db *sql.DB) (from, to int64, err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	err = conn.Raw(func(raw any) error {
		inner, ok := raw.(*stdlib.Conn)
		if !ok {
			return fmt.Errorf("connection is a %T", raw)
		}
		return pgx.BeginFunc(ctx, inner.Conn(), func(tx pgx.Tx) (err error) {
			from, to, err = migrateIn(ctx, tx, inner)
			return err
		})
	})
	return from, to, err
}

func migrateIn(ctx context.Context, tx pgx.Tx, conn *stdlib.Conn) (from, to int64, err error) {
	for _, statement := range []string{
		// Of this transaction only, so they work behind a pooler, too.
		`SET LOCAL statement_timeout = 0`,
		`SET LOCAL idle_in_transaction_session_timeout = 0`,
		`SET LOCAL lock_timeout = 0`,
		fmt.Sprintf(`SELECT pg_advisory_xact_lock(%d)`, migrationLock),
	} {
		if _, err := tx.Exec(ctx, statement); err != nil {
			return 0, 0, fmt.Errorf("lock schema: %w", err)
		}
	}
	var version int
	if err := tx.QueryRow(ctx, `SELECT current_setting('server_version_num')::int / 10000`).Scan(&version); err != nil {
		return 0, 0, fmt.Errorf("read version of server: %w", err)
	}
	if version < oldestPostgres {
		return 0, 0, fmt.Errorf("PostgreSQL %d is older than %d, the oldest that this program knows", version, oldestPostgres)
	}
	db := sql.OpenDB(nestedConn{conn})
	db.SetMaxOpenConns(1)
	defer func() { err = errors.Join(err, db.Close()) }()
	return postgresDialect.migrate(ctx, db)
}

// nestedConn is a connection that is in a transaction, which its user neither
// ends nor knows: what it thinks are transactions are parts of that one. It is
// its own connector.
type nestedConn struct{ *stdlib.Conn }

// Connect returns the connection.
func (c nestedConn) Connect(context.Context) (driver.Conn, error) { return c, nil }

// Driver returns pgx's.
func (c nestedConn) Driver() driver.Driver { return stdlib.GetDefaultDriver() }

// Close leaves the connection open.
func (c nestedConn) Close() error { return nil }

// ResetSession does nothing: the transaction is to stay.
func (c nestedConn) ResetSession(context.Context) error { return nil }

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
