package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/pressly/goose/v3"
)

//go:embed migrations
var migrations embed.FS

const (
	// versionTable is ours, whoever else uses goose in the same schema.
	versionTable = "agentstatsd_schema_version"
	// sharedVersionTable is goose's default, which the first versions of this
	// program used.
	sharedVersionTable = "goose_db_version"
)

// firstTables are those that the first schema version has in every database. Who
// has all of them is this program.
var firstTables = []string{"agents", "agent_states", "metadata", "workspaces"}

var (
	createsTable = regexp.MustCompile(`(?m)^CREATE TABLE (\w+)`)
	upEnds       = "-- +goose Down"
)

// migrate brings the schema up to date over db, and returns its version before
// and after. mayCreate is asked before anything is made.
func (d *dialect) migrate(ctx context.Context, db *sql.DB, mayCreate func(context.Context) error) (current, target int64, err error) {
	files, err := d.files()
	if err != nil {
		return 0, 0, err
	}
	provider, err := goose.NewProvider(d.goose, db, files,
		goose.WithDisableGlobalRegistry(true), goose.WithTableName(versionTable))
	if err != nil {
		return 0, 0, fmt.Errorf("read migrations: %w", err)
	}
	var known []int64
	for _, source := range provider.ListSources() {
		known = append(known, source.Version)
	}
	fresh, err := d.adopt(ctx, db, known)
	if err != nil {
		return 0, 0, err
	}
	if fresh {
		if err := mayCreate(ctx); err != nil {
			return 0, 0, err
		}
	}
	current, target, err = provider.GetVersions(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("read schema version: %w", err)
	}
	if current > target {
		return 0, 0, newerSchema(current, target)
	}
	if current < target && !fresh {
		if err := mayCreate(ctx); err != nil {
			return 0, 0, err
		}
	}
	if _, err := provider.Up(ctx); err != nil {
		return 0, 0, fmt.Errorf("migrate from schema version %d to %d: %w", current, target, err)
	}
	return current, target, nil
}

func newerSchema(current, newest int64) error {
	return fmt.Errorf("its schema version %d is newer than %d, the newest that this program knows:"+
		" use the program that wrote it, or a later one", current, newest)
}

// adopt makes sure that what goes by our names in the schema is ours. A version
// table of goose's default name is renamed if it is ours; otherwise it is left
// alone. fresh: nothing of ours is there.
func (d *dialect) adopt(ctx context.Context, db *sql.DB, known []int64) (fresh bool, err error) {
	there := make(map[string]struct{})
	err = query(ctx, db, d.queries.relations, nil, func(rows *sql.Rows) error {
		var name string
		err := rows.Scan(&name)
		there[name] = struct{}{}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("look for tables: %w", err)
	}
	if _, ours := there[versionTable]; ours {
		return false, nil
	}
	names, err := d.tables()
	if err != nil {
		return false, err
	}
	present := slices.DeleteFunc(names, func(name string) bool { _, found := there[name]; return !found })
	if len(present) == 0 {
		return true, nil
	}
	_, versioned := there[sharedVersionTable]
	ours := versioned && !slices.ContainsFunc(firstTables, func(name string) bool { return !slices.Contains(present, name) })
	if ours {
		if ours, err = adoptVersions(ctx, db, known); err != nil {
			return false, err
		}
	}
	if !ours {
		return false, fmt.Errorf("it has tables of another program (%s): give agentstatsd %s",
			strings.Join(present, ", "), d.roomOfItsOwn)
	}
	return false, nil
}

// adoptVersions renames the shared version table if it says what only this
// program can have written: the first of our versions, each once.
func adoptVersions(ctx context.Context, db *sql.DB, known []int64) (ours bool, err error) {
	var applied []int64
	err = query(ctx, db, `SELECT version_id FROM `+sharedVersionTable+` WHERE version_id > 0 ORDER BY version_id`, nil, func(rows *sql.Rows) error {
		var version int64
		err := rows.Scan(&version)
		applied = append(applied, version)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("read %s: %w", sharedVersionTable, err)
	}
	common := min(len(applied), len(known))
	switch {
	case common == 0 || !slices.Equal(applied[:common], known[:common]):
		return false, nil
	case len(applied) > len(known):
		return false, newerSchema(applied[len(applied)-1], known[len(known)-1])
	}
	if _, err := db.ExecContext(ctx, `ALTER TABLE `+sharedVersionTable+` RENAME TO `+versionTable); err != nil {
		return false, fmt.Errorf("rename %s to %s: %w", sharedVersionTable, versionTable, err)
	}
	return true, nil
}

// files returns the migrations.
func (d *dialect) files() (fs.FS, error) {
	files, err := fs.Sub(migrations, path.Join("migrations", d.name))
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	return files, nil
}

// tables returns the names of all tables that the migrations make, in order.
func (d *dialect) tables() ([]string, error) {
	files, err := d.files()
	if err != nil {
		return nil, err
	}
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	tables := make(map[string]struct{})
	for _, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, fmt.Errorf("read migrations: %w", err)
		}
		up, _, _ := strings.Cut(string(text), upEnds)
		for _, match := range createsTable.FindAllStringSubmatch(up, -1) {
			tables[match[1]] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(tables)), nil
}

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
