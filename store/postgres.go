package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store/internal/pgpool"
	"github.com/coder/agentstatsd/store/internal/pgserver"
	"github.com/coder/agentstatsd/store/internal/schema"
)

// postgresDialect is PostgreSQL, version 14 or later.
var postgresDialect = dialect{
	// A role, a database or a server may have it off: then what is acked could be
	// lost in a crash. A higher level stays.
	commitDurably: `SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'`,
	schema:        schema.PostgreSQL,
	faultOf:       postgresFault,
	id:            func(id agent.ID) any { return id.String() },
	among: func(ids []agent.ID) (string, []any) {
		texts := make([]string, len(ids))
		for i, id := range ids {
			texts[i] = id.String()
		}
		return "= ANY ($1::uuid[])", []any{texts}
	},
	exec:    postgresExec,
	execIDs: postgresExecIDs,
	stream:  postgresStream,
	clock: func(ctx context.Context, tx *sql.Tx) (now int64, err error) {
		err = tx.QueryRowContext(ctx, `SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint * 1000`).Scan(&now)
		return now, err
	},
	// Not FOR UPDATE: a writer's FOR KEY SHARE of the same row goes on beside it.
	forUpdate: ` FOR NO KEY UPDATE`, forKeyShare: ` FOR KEY SHARE`, forDelete: ` FOR UPDATE`,
	forUpdateUnlocked: ` FOR NO KEY UPDATE SKIP LOCKED`,
	// Who adds to them goes on.
	lockSubscriptions: `LOCK TABLE report_subscriptions IN SHARE ROW EXCLUSIVE MODE`,
	snapshot:          &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true},
	// Whatever a role, a database or a server have.
	writing: &sql.TxOptions{Isolation: sql.LevelReadCommitted},
	queries: postgresQueries(),
}

// postgresRows makes rows of arrays, one for each column. The text is the same for any
// number of rows, and the server parses and plans it once.
func postgresRows(columns ...string) string {
	names, arrays := make([]string, len(columns)), make([]string, len(columns))
	for i, column := range columns {
		name, kind, _ := strings.Cut(column, " ")
		names[i] = name
		arrays[i] = fmt.Sprintf("$%d::%s[]", i+1, kind)
		if kind == "jsonb" {
			arrays[i] = fmt.Sprintf("$%d::text[]::jsonb[]", i+1) // not encoded as JSON once more
		}
	}
	return "(SELECT * FROM unnest(" + strings.Join(arrays, ", ") + ") AS u (" + strings.Join(names, ", ") + "))"
}

func postgresQueries() queries {
	q := newQueries(postgresRows, ", changed = pg_current_xact_id()", ` FOR KEY SHARE`)
	// Rows that change nothing are left out before the insert: there, one that is not
	// updated is locked all the same, which is a write. The limit keeps the planner to
	// the index. Of a fleet of some thousand agents it would rather read the whole
	// table, 10 times as long. A row that is written locks its agent, as the foreign
	// key does: nobody else becomes the agent before the commit. One of an unknown
	// agent goes on to the foreign key, which refuses it. Rows that say nothing new
	// under the stored epoch have the zero id in the answer. What lost need not be
	// looked for if that is all that was not written.
	q.upsertMetadata = `
WITH n AS MATERIALIZED (
    SELECT u.*, m.epoch AS stored, m.agent_id IS NULL
        OR (u.epoch, u.sequence) > (m.epoch, m.sequence)
        AND (u.epoch <> m.epoch OR u.value <> m.value OR u.error <> m.error
            OR coalesce(m.collected_at, -9223372036854775807) <= u.touch_up_to) AS is_new
    FROM ` + postgresRows("agent_id uuid", "key text", "value text", "error text",
		"collected_at bigint", "epoch bigint", "sequence bigint", "touch_up_to bigint", "incarnation bigint",
		"basis bigint", "previous bigint") + ` AS u
    LEFT JOIN LATERAL (
        SELECT * FROM metadata WHERE agent_id = u.agent_id AND key = u.key LIMIT 1
    ) AS m ON true
), written AS (
    INSERT INTO metadata (agent_id, key, value, error, collected_at, epoch, sequence, basis, previous)
    SELECT n.agent_id, n.key, n.value, n.error, n.collected_at, n.epoch, n.sequence, n.basis, n.previous
    FROM n
    WHERE n.is_new AND (n.incarnation = 0
        OR EXISTS (SELECT 1 FROM agents WHERE id = n.agent_id AND registered = n.incarnation FOR KEY SHARE)
        OR NOT EXISTS (SELECT 1 FROM agents WHERE id = n.agent_id))
    ORDER BY n.agent_id, n.key COLLATE "C"
    ON CONFLICT (agent_id, key) DO UPDATE SET
        value = excluded.value, error = excluded.error, collected_at = excluded.collected_at,
        epoch = excluded.epoch, sequence = excluded.sequence
    WHERE ` + notEarlier("excluded.basis", "excluded.previous") + `
    RETURNING agent_id
)
SELECT agent_id FROM written
UNION ALL
SELECT '00000000-0000-0000-0000-000000000000' FROM n
WHERE NOT is_new AND epoch = stored AND (n.incarnation = 0
    OR EXISTS (SELECT 1 FROM agents WHERE id = n.agent_id AND registered = n.incarnation))`
	q.upsertNewerSum += ` RETURNING agent_id`
	q.yes = `true`
	q.insertBuild = `
INSERT INTO builds_observed (build_id, observed_at)
SELECT * FROM ` + postgresRows("build_id uuid", "observed_at bigint") + ` AS n
ON CONFLICT DO NOTHING RETURNING build_id`
	q.cursor = `SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint,
    (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint`
	// What a snapshot sees was written before its end. Rows that say otherwise
	// were brought from another cluster, which had more transactions: they would
	// count as new until this one has as many.
	q.since = ` WHERE changed >= ($1::bigint)::text::xid8 AND changed < pg_snapshot_xmax(pg_current_snapshot())`
	return q
}

// postgresExec runs the statement once for all rows.
func postgresExec(ctx context.Context, tx *sql.Tx, text string, rows [][]any) (int64, error) {
	var written int64
	for part := range slices.Chunk(rows, chunk) {
		args, err := transpose(part)
		if err != nil {
			return 0, err
		}
		result, err := tx.ExecContext(ctx, text, args...)
		if err != nil {
			return 0, err
		}
		n, err := result.RowsAffected()
		if err != nil {
			return 0, err
		}
		written += n
	}
	return written, nil
}

func postgresExecIDs(ctx context.Context, tx *sql.Tx, text string, rows [][]any) ([]agent.ID, error) {
	var ids []agent.ID
	for part := range slices.Chunk(rows, chunk) {
		args, err := transpose(part)
		if err != nil {
			return nil, err
		}
		err = query(ctx, tx, text, args, func(rows *sql.Rows) error {
			var id agent.ID
			err := rows.Scan(&id)
			ids = append(ids, id)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// postgresStream reads by a cursor. A limit of time is one of each page. All pages
// are of the transaction's snapshot, so nothing moves from one to another.
func postgresStream(ctx context.Context, tx *sql.Tx, page page, text string, args []any, scan func(*sql.Rows) error) error {
	_, err := tx.ExecContext(ctx, `DECLARE `+page.name+` NO SCROLL CURSOR FOR `+text, args...)
	if err != nil {
		return err
	}
	fetch := fmt.Sprintf(`FETCH %d FROM %s`, page.rows, page.name)
	for read := page.rows; read == page.rows; {
		read = 0
		err := query(ctx, tx, fetch, nil, func(rows *sql.Rows) error {
			read++
			return scan(rows)
		})
		if err != nil {
			return err
		}
	}
	_, err = tx.ExecContext(ctx, `CLOSE `+page.name)
	return err
}

// transpose makes an array of each column of rows, of which there is one at
// least.
func transpose(rows [][]any) ([]any, error) {
	columns := make([]any, len(rows[0]))
	for i, first := range rows[0] {
		switch first.(type) {
		case string:
			columns[i] = column(rows, i, func(s string) string { return s })
		case int64:
			columns[i] = column(rows, i, func(n int64) int64 { return n })
		case bool:
			columns[i] = column(rows, i, func(b bool) bool { return b })
		case []byte:
			columns[i] = column(rows, i, func(b []byte) []byte { return b })
		case sql.NullInt64:
			columns[i] = column(rows, i, func(n sql.NullInt64) *int64 {
				if !n.Valid {
					return nil
				}
				return &n.Int64
			})
		default:
			return nil, fmt.Errorf("argument %d is a %T", i+1, first)
		}
	}
	return columns, nil
}

func column[From, To any](rows [][]any, i int, convert func(From) To) []To {
	values := make([]To, len(rows))
	for j, row := range rows {
		value, _ := row[i].(From) // as in the first row: they are made by one function
		values[j] = convert(value)
	}
	return values
}

// connectTimeout is how long a connection may take, unless the URL says so.
const connectTimeout = 5 * time.Second

// silence is after how long a server that is gone without a word is noticed, even by who
// waits for an answer without a limit.
const silence = 30 * time.Second

// openPostgres connects to the database.
func openPostgres(ctx context.Context, opts Options, log *slog.Logger) (*Store, error) {
	config, err := postgresConfig(opts)
	if err != nil {
		return nil, err
	}
	config.OnNotice = pgpool.Notices(log)
	config.Tracer = pgpool.Tracer(log)
	pool := pgpool.Open(config, opts.MaxConns)
	s := &Store{
		dialect: &postgresDialect, writer: pool.DB, reader: pool.DB, renew: pool.Renew,
		touchInterval: opts.TouchInterval, removalsKept: opts.RemovalsKept, namedKept: opts.NamedKept, patience: opts.StatementTimeout, log: log,
	}
	var o opened
	err = s.attempt(ctx, fmt.Sprintf("open database %q of %s", config.Database, hosts(config)), func() (err error) {
		if !opts.TransactionPooling {
			if err := pgserver.CheckPooler(ctx, pool.DB); err != nil {
				return pgserver.ExplainOpen(err, opts.TransactionPooling)
			}
		}
		o, err = preparePostgres(ctx, pool.DB, opts.DeploymentID)
		return pgserver.ExplainOpen(err, opts.TransactionPooling)
	})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.opened(ctx, o)
	if o.deployment.where.cluster == "" {
		s.log.WarnContext(ctx, "this role may not execute pg_control_system(): a copy of the database in another cluster cannot be distinguished from it")
	}
	return s, nil
}

// hosts names the servers of the URL, each once.
func hosts(config *pgx.ConnConfig) string {
	names := []string{config.Host}
	for _, other := range config.Fallbacks {
		if !slices.Contains(names, other.Host) {
			names = append(names, other.Host)
		}
	}
	return strings.Join(names, ", ")
}

// postgresConfig reads the URL. Its errors have nothing of it: a URL that cannot
// be taken apart may have the password anywhere.
func postgresConfig(opts Options) (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig(opts.URL)
	if err != nil {
		return nil, errors.New("store: the database URL cannot be read, or names files that cannot be:" +
			" it is like postgres://user:password@host:5432/database?sslmode=verify-full," +
			" with what is special in a user name or a password percent-encoded")
	}
	pgpool.PreferPrimary(&config.Config)
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	config.DialFunc = pgpool.Dialer(silence).DialContext
	params := map[string]string{"application_name": opts.Name}
	if opts.TransactionPooling {
		config.DefaultQueryExecMode = pgx.QueryExecModeExec
		config.StatementCacheCapacity, config.DescriptionCacheCapacity = 0, 0
	} else {
		ms := opts.StatementTimeout.Milliseconds()
		params["statement_timeout"] = strconv.FormatInt(ms, 10)
		params["idle_in_transaction_session_timeout"] = strconv.FormatInt(ms, 10)
		params["lock_timeout"] = strconv.FormatInt(max(ms/2, 1), 10)
	}
	// Whatever the URL, the role or the database say: text goes as Go has it.
	config.RuntimeParams["client_encoding"] = "UTF8"
	for name, value := range params {
		if _, ok := config.RuntimeParams[name]; !ok { // the URL's count
			config.RuntimeParams[name] = value
		}
	}
	return config, nil
}
