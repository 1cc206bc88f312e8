package store

import (
	"embed"
	"strings"

	"github.com/pressly/goose/v3"
)

//go:embed migrations
var migrations embed.FS

// dialect is what differs from one database to another.
type dialect struct {
	// name is also that of the directory of its migrations.
	name  string
	goose goose.Dialect
	// isRejected tells errors about the data, which come again, from others.
	isRejected func(error) bool
	queries    queries
}

// queries are the statements; arguments and columns are in the order in which
// the text names them.
type queries struct {
	upsertMetadata string
	metadata       func(agents int) string
	metadataKeys   string

	deleteAgent, deleteWorkspace string
	upsertWorkspace, upsertAgent string
	workspaces, agents           string

	upsertState, states string
	// raiseEpoch takes the epoch, the agent and the epoch again.
	raiseEpoch, epochs string

	upsertPush, deletePush, pushes string

	// deleteBuilds takes the time before which they were observed.
	insertBuild, deleteBuilds string
}

// placeholders returns "?, ?, ..." for n > 0 arguments.
func placeholders(n int) string {
	return strings.Repeat("?, ", n-1) + "?"
}
