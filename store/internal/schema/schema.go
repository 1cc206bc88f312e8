// Package schema brings the tables of a database up to date, and back for an older
// program.
package schema

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

const (
	// VersionTable is ours, whoever else uses goose in the same schema.
	VersionTable = "agentstatsd_schema_version"
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

//go:embed migrations
var migrations embed.FS

// Schema is the schema of one kind of database. Its methods are safe for concurrent
// use.
type Schema struct {
	dialect goose.Dialect
	// directory of its migrations, the files NNNNN_name.sql, each with the way back.
	directory string
	// names is the query of the names of all that is in the schema.
	names string
	// roomOfItsOwn is what an operator gives a deployment that meets another program's
	// tables.
	roomOfItsOwn string
}

// SQLite is the schema of a file.
var SQLite = &Schema{
	dialect: goose.DialectSQLite3, directory: "sqlite",
	names:        `SELECT name FROM sqlite_master`,
	roomOfItsOwn: "a file of its own",
}

// PostgreSQL is the schema of a schema there.
var PostgreSQL = &Schema{
	dialect: goose.DialectPostgres, directory: "postgres",
	names: `
SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = current_schema()`,
	roomOfItsOwn: "a schema of its own, by search_path in the database URL, or a database of its own",
}

// Files returns the migrations.
func (s *Schema) Files() (fs.FS, error) {
	files, err := fs.Sub(migrations, path.Join("migrations", s.directory))
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	return files, nil
}

// Up brings the schema up to date, and returns its version before and after. mayCreate
// is asked before anything is made. A schema that a newer version of this program made
// is an error.
func (s *Schema) Up(ctx context.Context, db *sql.DB, mayCreate func(context.Context) error) (current, target int64, err error) {
	provider, fresh, err := s.provider(ctx, db)
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
		return 0, 0, Newer(current, target)
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

// To takes the schema to a version, up or down, and returns the one before. On the way
// down what older versions cannot keep is lost. A version that is unknown is an error,
// as is a schema that a newer version of this program made.
func (s *Schema) To(ctx context.Context, db *sql.DB, version int64) (before int64, err error) {
	provider, fresh, err := s.provider(ctx, db)
	if err != nil {
		return 0, err
	}
	if fresh {
		return 0, errors.New("it has no tables yet: start the service once")
	}
	known := versions(provider)
	if !slices.Contains(known, version) {
		return 0, fmt.Errorf("schema version: want one of %v, got %d", known, version)
	}
	before, newest, err := provider.GetVersions(ctx)
	switch {
	case err != nil:
		return 0, fmt.Errorf("read schema version: %w", err)
	case before > newest:
		return 0, Newer(before, newest)
	case version < before:
		_, err = provider.DownTo(ctx, version)
	default:
		_, err = provider.UpTo(ctx, version)
	}
	if err != nil {
		return before, fmt.Errorf("migrate from schema version %d to %d: %w", before, version, err)
	}
	return before, nil
}

// Versions returns the version of the schema, 0 if there is none, and the newest one
// that this program knows. It changes nothing.
func (s *Schema) Versions(ctx context.Context, db *sql.DB) (current, newest int64, err error) {
	provider, err := s.open(db)
	if err != nil {
		return 0, 0, err
	}
	newest = slices.Max(versions(provider))
	there, err := s.relations(ctx, db)
	if err != nil {
		return 0, newest, err
	}
	if _, ours := there[VersionTable]; !ours {
		return 0, newest, nil
	}
	err = db.QueryRowContext(ctx, `SELECT coalesce(max(version_id), 0) FROM `+VersionTable).Scan(&current)
	if err != nil {
		return 0, newest, fmt.Errorf("read schema version: %w", err)
	}
	return current, newest, nil
}

// open returns goose's view of db. It reads nothing there.
func (s *Schema) open(db *sql.DB) (*goose.Provider, error) {
	files, err := s.Files()
	if err != nil {
		return nil, err
	}
	provider, err := goose.NewProvider(s.dialect, db, files,
		goose.WithDisableGlobalRegistry(true), goose.WithTableName(VersionTable))
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	return provider, nil
}

// provider returns goose's view of a database whose tables are ours. fresh: nothing of
// ours is there.
func (s *Schema) provider(ctx context.Context, db *sql.DB) (provider *goose.Provider, fresh bool, err error) {
	if provider, err = s.open(db); err != nil {
		return nil, false, err
	}
	fresh, err = s.adopt(ctx, db, versions(provider))
	return provider, fresh, err
}

// versions returns those that the program knows, ascending.
func versions(provider *goose.Provider) []int64 {
	var known []int64
	for _, source := range provider.ListSources() {
		known = append(known, source.Version)
	}
	return known
}

// Newer returns the error of a schema that a newer version of this program made.
func Newer(current, newest int64) error {
	return fmt.Errorf("its schema version %d is newer than %d, the newest that this program knows:"+
		" use the program that wrote it, or a later one, or have that one take the schema back: agentstatsd migrate --to %d",
		current, newest, newest)
}

// adopt makes sure that what goes by our names in the schema is ours. A version
// table of goose's default name is renamed if it is ours; otherwise it is left
// alone. fresh: nothing of ours is there.
func (s *Schema) adopt(ctx context.Context, db *sql.DB, known []int64) (fresh bool, err error) {
	there, err := s.relations(ctx, db)
	if err != nil {
		return false, err
	}
	if _, ours := there[VersionTable]; ours {
		return false, nil
	}
	names, err := s.Tables()
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
			strings.Join(present, ", "), s.roomOfItsOwn)
	}
	return false, nil
}

// relations returns the names of all that is in the schema.
func (s *Schema) relations(ctx context.Context, db *sql.DB) (map[string]struct{}, error) {
	there := make(map[string]struct{})
	err := each(ctx, db, s.names, func(rows *sql.Rows) error {
		var name string
		err := rows.Scan(&name)
		there[name] = struct{}{}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look for tables: %w", err)
	}
	return there, nil
}

// each calls scan for each row of a query.
func each(ctx context.Context, db *sql.DB, text string, scan func(*sql.Rows) error) (err error) {
	rows, err := db.QueryContext(ctx, text)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// adoptVersions renames the shared version table if it says what only this
// program can have written: the first of our versions, each once.
func adoptVersions(ctx context.Context, db *sql.DB, known []int64) (ours bool, err error) {
	var applied []int64
	err = each(ctx, db, `SELECT version_id FROM `+sharedVersionTable+` WHERE version_id > 0 ORDER BY version_id`, func(rows *sql.Rows) error {
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
		return false, Newer(applied[len(applied)-1], known[len(known)-1])
	}
	if _, err := db.ExecContext(ctx, `ALTER TABLE `+sharedVersionTable+` RENAME TO `+VersionTable); err != nil {
		return false, fmt.Errorf("rename %s to %s: %w", sharedVersionTable, VersionTable, err)
	}
	return true, nil
}

// Tables returns the names of all tables that the migrations make, in order.
func (s *Schema) Tables() ([]string, error) {
	files, err := s.Files()
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
