package store

import (
	"cmp"
	"context"
	"database/sql"
	"math"
	"strings"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store/internal/schema"
)

// dialect is what differs from one database to another.
type dialect struct {
	schema *schema.Schema
	// faultOf classifies an error; it is not nil.
	faultOf func(error) fault

	// id is an id as an argument.
	id func(agent.ID) any
	// among returns the condition that a column is one of ids, and its arguments.
	among func(ids []agent.ID) (condition string, args []any)
	// exec runs a statement that names the values of one row, for all rows, and
	// returns how many were written.
	exec func(ctx context.Context, tx *sql.Tx, text string, rows [][]any) (int64, error)
	// execIDs is exec for a statement that returns an id. It returns the first value of
	// each row that was written, in the order of the rows.
	execIDs func(ctx context.Context, tx *sql.Tx, text string, rows [][]any) ([]agent.ID, error)
	// stream runs a read of any size in a transaction, and calls scan for each
	// row. No statement of it returns more than page rows.
	stream func(ctx context.Context, tx *sql.Tx, page page, text string, args []any, scan func(*sql.Rows) error) error

	// clock returns the time of the database, in nanoseconds since 1970.
	clock func(ctx context.Context, tx *sql.Tx) (int64, error)
	// What follows a SELECT to lock its rows until the transaction ends: against
	// other writers, against their removal, and to remove them.
	forUpdate, forKeyShare, forDelete string
	// forUpdateUnlocked is forUpdate but for rows that another transaction has locked.
	forUpdateUnlocked string
	// lockSubscriptions is run before a subscription is made, so that no other is
	// made until the transaction ends; empty: none can be.
	lockSubscriptions string

	// commitDurably is run at the beginning of a transaction that writes, so that
	// its commit is on disk when it returns; empty: it is anyway.
	commitDurably string
	// snapshot makes all reads of a transaction see one moment. writing makes each
	// statement of one see what was committed before it; nil: it does.
	snapshot, writing *sql.TxOptions
	queries           queries
}

// fault is what an error of the database means.
type fault struct {
	// rejected: it is about the data, and comes again.
	rejected bool
	// orphaned: a row refers to one that was removed meanwhile.
	orphaned bool
	// transient: the same again at once may well succeed.
	transient bool
	// down: nobody can use the database.
	down bool
	// moved: the connection, and all that were made when it was, may lead to a
	// server that is not the right one any more.
	moved bool
	// reason says why in words for everybody; empty: nothing is known.
	reason string
	// answered: the database said that nothing was written. Otherwise it may
	// have been, or may still be.
	answered bool
}

// queries are the statements whose text depends on the database. Arguments are
// in the order of the columns that the text names.
type queries struct {
	// yes is true as a literal.
	yes string
	// upsertMetadata has more arguments. The first is up to which time of the stored
	// row it is written again with the same value. Then come the incarnation of the
	// agent, and what its session knew: basis and previous. It returns the agent of
	// each row that it wrote, and may return the zero id for one that is stored
	// already.
	upsertMetadata string

	upsertWorkspace, upsertAgent string
	// Those that note what is removed take an id and the revision.
	noteAgents, noteAgentsOf, noteWorkspaces string
	deleteAgents, deleteWorkspaces           string

	upsertState, upsertSession string
	// forgetApps takes agents. It deletes the health of apps that they do not have.
	forgetApps string
	// cursor reads that of incremental reads, as a transaction, and what identifies the
	// server; empty: there are none. since is the condition on what was
	// written since a transaction.
	cursor, since string

	// deletePush takes an instance and its version. The last column of both others is
	// the version that the row gets. updatePush has before it the one that the row has.
	insertPush, updatePush, deletePush string

	insertBuild string

	// upsertSum adds the rows to sums of reports. The last column has only those
	// added that have a sum. upsertNewerSum adds only what is newer of the instance
	// that the sum has, and returns the agents.
	upsertSum, upsertNewerSum string
	// Of the instances of agents that ended.
	upsertInstance, deleteInstance string

	// freeLease takes a replica and the zero id.
	deleteReplica, freeLease string
}

// page is how a large read is taken apart.
type page struct {
	// name identifies reads of different columns.
	name string
	// rows are those of one page: some hundred KB.
	rows int
}

var (
	pageOfWorkspaces = page{"workspaces_page", 1000}
	pageOfAgents     = page{"agents_page", 1000}
	// A row has as many ids as one call names.
	pageOfNamed    = page{"named_page", 4}
	pageOfRemoved  = page{"removed_page", 10_000}
	pageOfRemovals = page{"removals_page", 10_000}
	pageOfStates   = page{"states_page", 2000}
	pageOfSessions = page{"sessions_page", 5000}
	pageOfMetadata = page{"metadata_page", 500}
	pageOfKeys     = page{"keys_page", 5000}
	// A row may have megabytes.
	pageOfPushes   = page{"pushes_page", 4}
	pageOfVersions = page{"versions_page", 5000}
	pageOfReplicas = page{"replicas_page", 1000}
)

// rowsAs is a table expression of the rows of a statement for dialect.exec,
// with columns like "agent_id uuid".
type rowsAs func(columns ...string) string

// follows is the condition on which an upsert into the table takes the place of a
// row: agent.Order.Follows. A late row has a negative basis.
func follows(table, basis, previous string) string {
	return strings.NewReplacer("TABLE", table, "BASIS", basis, "PREVIOUS", previous).Replace(
		`(excluded.epoch, excluded.sequence) > (TABLE.epoch, TABLE.sequence)
    AND (TABLE.epoch = excluded.epoch OR TABLE.epoch <= abs(BASIS) OR TABLE.epoch = PREVIOUS)`)
}

// notEarlier is follows for metadata. A late row replaces no other that was collected later,
// but for one of its relay's session before.
func notEarlier(basis, previous string) string {
	return follows("metadata", basis, previous) + strings.NewReplacer("BASIS", basis, "PREVIOUS", previous).Replace(`
    AND (BASIS > 0 OR metadata.epoch = PREVIOUS OR coalesce(metadata.collected_at, -9223372036854775807) <= excluded.collected_at)`)
}

// knownBefore returns the arguments of follows.
func knownBefore(o agent.Order) (basis, previous int64) {
	return cmp.Or(o.Basis, math.MaxInt64), o.Previous
}

// newQueries makes the statements that differ in little: in where the rows come from,
// and in what else an update sets. They differ, too, in what keeps a row that is read
// from being deleted until the transaction ends.
func newQueries(rows rowsAs, alsoSet, keyShare string) queries {
	return queries{
		upsertWorkspace: `
INSERT INTO workspaces (id, name, owner_id, owner_username, template_id, template_name,
    template_version, organization, build_id, build_created_at, build_transition, build_is_prebuild, revision)
SELECT * FROM ` + rows("id uuid", "name text", "owner_id uuid", "owner_username text",
			"template_id uuid", "template_name text", "template_version text", "organization text",
			"build_id uuid", "build_created_at bigint", "build_transition text", "build_is_prebuild boolean", "revision bigint") + ` AS n
WHERE true ON CONFLICT (id) DO UPDATE SET
    name = excluded.name, owner_id = excluded.owner_id, owner_username = excluded.owner_username,
    template_id = excluded.template_id, template_name = excluded.template_name,
    template_version = excluded.template_version, organization = excluded.organization,
    build_id = excluded.build_id, build_created_at = excluded.build_created_at,
    build_transition = excluded.build_transition, build_is_prebuild = excluded.build_is_prebuild,
    revision = excluded.revision`,
		upsertAgent: `
INSERT INTO agents (id, workspace_id, parent_id, name, created_at, connection_timeout,
    token_sha256, apps, metadata_keys, observed, revision, registered)
SELECT * FROM ` + rows("id uuid", "workspace_id uuid", "parent_id uuid", "name text", "created_at bigint",
			"connection_timeout bigint", "token_sha256 bytea", "apps jsonb", "metadata_keys jsonb", "observed text", "revision bigint", "registered bigint") + ` AS n
WHERE true ON CONFLICT (id) DO UPDATE SET
    workspace_id = excluded.workspace_id, parent_id = excluded.parent_id, name = excluded.name,
    created_at = excluded.created_at, connection_timeout = excluded.connection_timeout,
    token_sha256 = excluded.token_sha256, apps = excluded.apps,
    metadata_keys = excluded.metadata_keys, observed = excluded.observed, revision = excluded.revision`,

		noteAgents: `
INSERT INTO removed (kind, id, revision) SELECT 'agents', agents.id, n.revision
FROM ` + rows("id uuid", "revision bigint") + ` AS n JOIN agents ON agents.id = n.id`,
		noteAgentsOf: `
INSERT INTO removed (kind, id, revision) SELECT 'agents', agents.id, n.revision
FROM ` + rows("id uuid", "revision bigint") + ` AS n JOIN agents ON agents.workspace_id = n.id`,
		noteWorkspaces: `
INSERT INTO removed (kind, id, revision) SELECT 'workspaces', workspaces.id, n.revision
FROM ` + rows("id uuid", "revision bigint") + ` AS n JOIN workspaces ON workspaces.id = n.id`,
		deleteAgents:     `DELETE FROM agents WHERE id IN (SELECT id FROM ` + rows("id uuid") + ` AS n)`,
		deleteWorkspaces: `DELETE FROM workspaces WHERE id IN (SELECT id FROM ` + rows("id uuid") + ` AS n)`,

		upsertState: `
INSERT INTO agent_states (agent_id, part, epoch, sequence, said, data, basis, previous)
SELECT n.agent_id, n.part, n.epoch, n.sequence, n.said, n.data, n.basis, n.previous
FROM ` + rows("agent_id uuid", "part text", "epoch bigint", "sequence bigint", "said bigint", "data jsonb",
			"incarnation bigint", "basis bigint", "previous bigint") + ` AS n
WHERE EXISTS (
    SELECT 1 FROM agents WHERE agents.id = n.agent_id AND n.incarnation IN (0, agents.registered)` + keyShare + `
) ORDER BY n.agent_id, n.part
ON CONFLICT (agent_id, part) DO UPDATE SET
    epoch = excluded.epoch, sequence = excluded.sequence, said = excluded.said, data = excluded.data` + alsoSet + `
WHERE ` + follows("agent_states", "excluded.basis", "excluded.previous"),
		// The ids are all that is looked for in the JSON, and quoted in it.
		forgetApps: `
DELETE FROM agent_states WHERE agent_id IN (SELECT id FROM ` + rows("id uuid") + ` AS n)
AND part LIKE 'app_health/%' AND NOT EXISTS (
    SELECT 1 FROM agents WHERE agents.id = agent_states.agent_id
    AND CAST(agents.apps AS text) LIKE '%"' || substr(agent_states.part, 12) || '"%')`,
		// Of the same session only the flags change, and each in one direction.
		upsertSession: `
INSERT INTO sessions (agent_id, epoch, replica_id, open, reported, relayed)
SELECT n.agent_id, n.epoch, n.replica_id, n.open, n.reported, n.relayed
FROM ` + rows("agent_id uuid", "epoch bigint", "replica_id uuid", "open boolean", "reported boolean", "relayed boolean", "incarnation bigint") + ` AS n
WHERE EXISTS (
    SELECT 1 FROM agents WHERE agents.id = n.agent_id AND n.incarnation IN (0, agents.registered)` + keyShare + `
) ORDER BY n.agent_id
ON CONFLICT (agent_id) DO UPDATE SET
    epoch = excluded.epoch, replica_id = excluded.replica_id,
    open = excluded.open AND (sessions.open OR excluded.epoch > sessions.epoch OR excluded.replica_id > sessions.replica_id),
    reported = excluded.reported OR
        sessions.reported AND (excluded.epoch, excluded.replica_id) = (sessions.epoch, sessions.replica_id),
    relayed = excluded.relayed OR
        sessions.relayed AND (excluded.epoch, excluded.replica_id) = (sessions.epoch, sessions.replica_id)` + alsoSet + `
WHERE (excluded.epoch, excluded.replica_id) > (sessions.epoch, sessions.replica_id)
    OR (excluded.epoch, excluded.replica_id) = (sessions.epoch, sessions.replica_id)
    AND (sessions.open AND NOT excluded.open OR excluded.reported AND NOT sessions.reported)`,

		upsertSum:      upsertSum(rows),
		upsertNewerSum: upsertSum(rows) + newerOfInstance,
		upsertInstance: `
INSERT INTO report_instances (subscription_id, agent_id, instance_id, written, written_at)
SELECT * FROM ` + rows("subscription_id bigint", "agent_id uuid", "instance_id uuid", "written bigint", "written_at bigint") + ` AS n
WHERE true ON CONFLICT (subscription_id, agent_id, instance_id) DO UPDATE SET
    written = excluded.written, written_at = excluded.written_at`,
		deleteInstance: `
DELETE FROM report_instances WHERE EXISTS (
    SELECT 1 FROM ` + rows("subscription_id bigint", "agent_id uuid", "instance_id uuid") + ` AS n
    WHERE n.subscription_id = report_instances.subscription_id AND n.agent_id = report_instances.agent_id
    AND n.instance_id = report_instances.instance_id)`,

		insertPush: `
INSERT INTO pushes (instance_id, replica, updated_at, data, version)
SELECT * FROM ` + rows("instance_id uuid", "replica text", "updated_at bigint", "data bytea", "version bigint") + ` AS n
WHERE true ON CONFLICT DO NOTHING`,
		updatePush: `
UPDATE pushes SET replica = n.replica, updated_at = n.updated_at, data = n.data, version = n.version
FROM ` + rows("instance_id uuid", "replica text", "updated_at bigint", "data bytea", "version bigint") + ` AS n
WHERE pushes.instance_id = n.instance_id AND pushes.version = n.version - 1`,
		deletePush: `
DELETE FROM pushes WHERE EXISTS (
    SELECT 1 FROM ` + rows("instance_id uuid", "version bigint") + ` AS n
    WHERE n.instance_id = pushes.instance_id AND n.version = pushes.version)`,

		deleteReplica: `DELETE FROM replicas WHERE id IN (SELECT id FROM ` + rows("id uuid") + ` AS n)`,
		freeLease:     `UPDATE lease SET holder = n.nobody FROM ` + rows("id uuid", "nobody uuid") + ` AS n WHERE lease.holder = n.id`,
	}
}

// chunk is how many rows one statement has at most. Fewer round trips are not worth
// more time of locks and more memory.
const chunk = 1000
