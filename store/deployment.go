package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/agent"
)

// place is where a database is. Whoever copies one makes another place.
type place struct {
	// cluster is the PostgreSQL cluster, which a physical copy shares; empty if
	// this role may not know.
	cluster string
	// object is what is new in each logical copy: the table and its database, or
	// the file.
	object string
}

// differs reports whether p is for certain another place than that of a record.
func (p place) differs(recorded place) bool {
	return p.object != recorded.object ||
		p.cluster != "" && recorded.cluster != "" && p.cluster != recorded.cluster
}

// deployment is the identity of a database, and why it is not the one of before.
type deployment struct {
	id     agent.ID
	before agent.ID // zero: there was none
	copied bool     // the database is not where the id was made
	where  place
}

// DeploymentID returns the id of a deployment that an operator has named. A UUID is
// taken as it stands; an id is made of any other text.
func DeploymentID(name string) agent.ID {
	if id, err := uuid.Parse(name); err == nil {
		return id
	}
	sum := sha256.Sum256([]byte("agentstatsd deployment " + name))
	return agent.ID(sum[:16])
}

// identify returns the identity of the database, and makes one if it has none or
// that of the place that it was copied from. forced, if it is not zero, is the
// id. Nobody else may do so at the same time.
func (d *dialect) identify(ctx context.Context, db *sql.DB, where place, forced agent.ID) (deployment, error) {
	dep := deployment{where: where}
	var recorded place
	err := db.QueryRowContext(ctx, `SELECT id, cluster, object FROM agentstatsd_deployment`).Scan(&dep.before, &recorded.cluster, &recorded.object)
	switch {
	case errors.Is(err, sql.ErrNoRows):
	case err != nil:
		return dep, fmt.Errorf("read deployment: %w", err)
	default:
		dep.copied = where.differs(recorded)
	}
	switch {
	case forced != agent.ID{}:
		dep.id = forced
	case dep.copied || dep.before == agent.ID{}:
		dep.id = uuid.New()
	default:
		dep.id = dep.before
	}
	if where.cluster == "" && !dep.copied {
		where.cluster = recorded.cluster // as a role knew it that may
	}
	if dep.id == dep.before && where == recorded {
		return dep, nil
	}
	_, err = db.ExecContext(ctx, `
INSERT INTO agentstatsd_deployment (one, id, cluster, object) VALUES (`+d.queries.yes+`, $1, $2, $3)
ON CONFLICT (one) DO UPDATE SET id = excluded.id, cluster = excluded.cluster, object = excluded.object`,
		d.id(dep.id), where.cluster, where.object)
	if err != nil {
		return dep, fmt.Errorf("record deployment: %w", err)
	}
	return dep, nil
}

// log says what became of the identity.
func (dep *deployment) log(ctx context.Context, log *slog.Logger) {
	switch {
	case dep.before == agent.ID{}:
		log.InfoContext(ctx, "database belongs to a new deployment", "deployment", dep.id)
	case dep.copied && dep.id != dep.before:
		log.WarnContext(ctx, "database is a copy: it belongs to a new deployment", "deployment", dep.id, "copied_from", dep.before)
	case dep.id != dep.before:
		log.WarnContext(ctx, "deployment has another id, as was asked for", "deployment", dep.id, "before", dep.before)
	}
}

// Deployment returns the id of the deployment whose database this is, as it stands
// there now. A process that started later may have given it another.
func (s *Store) Deployment(ctx context.Context) (agent.ID, error) {
	var id agent.ID
	err := s.read(ctx, "read deployment", func(q querier) error {
		return query(ctx, q, `SELECT id FROM agentstatsd_deployment`, nil, func(rows *sql.Rows) error { return rows.Scan(&id) })
	})
	return id, err
}
