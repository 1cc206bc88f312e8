package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/coder/serpent"

	"github.com/coder/agentstatsd/internal/datadir"
	"github.com/coder/agentstatsd/optiontable"
	"github.com/coder/agentstatsd/store"
	"github.com/coder/agentstatsd/store/backup"
)

// showOnly hides all options from the help of a command but those named. All can be
// given, as one configuration file is for all commands.
func showOnly(options serpent.OptionSet, flags ...string) serpent.OptionSet {
	for i := range options {
		options[i].Hidden = !slices.Contains(flags, options[i].Flag)
	}
	return options
}

// oneFile requires one argument that is no flag. It is not repeated: what stands there by
// mistake can be a password.
func oneFile(next serpent.HandlerFunc) serpent.HandlerFunc {
	return func(inv *serpent.Invocation) error {
		if n := len(inv.Args); n != 1 {
			return fmt.Errorf("%s takes one file name, got %d arguments: see --help", inv.Command.Name(), n)
		}
		return next(inv)
	}
}

func backupCommand() *serpent.Command {
	var c config
	return &serpent.Command{
		Use:   "backup FILE",
		Short: "Copy the SQLite database while the service runs on it.",
		Long: "Writes a copy of the database to a new file, which only its owner may read; - is the standard output. " +
			"All that was acked as durable before is in it. The copy is checked as a whole.",
		Options:    showOnly(c.options(), "config", "data-dir"),
		Middleware: serpent.Chain(oneFile, configured(&c, c.validate, nil)),
		Handler: func(inv *serpent.Invocation) error {
			if c.databaseURL != "" {
				return errors.New("backup copies SQLite databases: copy a PostgreSQL database with pg_dump --format=custom")
			}
			file, out := inv.Args[0], inv.Stdout
			var s backup.Summary
			var err error
			if file == "-" {
				out = inv.Stderr
				s, err = backup.Stream(inv.Context(), c.databasePath(), inv.Stdout)
			} else {
				s, err = backup.Write(inv.Context(), c.databasePath(), file)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(out, "wrote %s\n", describe(file, s))
			return err
		},
	}
}

func restoreCommand() *serpent.Command {
	var c config
	var checkOnly, newDeployment bool
	return &serpent.Command{
		Use:   "restore FILE",
		Short: "Make a copy of the SQLite database the database of the data directory.",
		Long: "Checks the copy as a whole and puts it in the place of the database, while no service uses the data directory. " +
			"The database that was there is kept beside it.",
		Options: append(serpent.OptionSet{
			{Flag: "check", Description: "Check the copy only.", Default: "false", Value: serpent.BoolOf(&checkOnly)},
			{Flag: "new-deployment", Description: "Give the copy an id of its own: where the original goes on beside it, as for a staging.",
				Default: "false", Value: serpent.BoolOf(&newDeployment)},
		}, showOnly(c.options(), "config", "data-dir")...),
		Middleware: serpent.Chain(oneFile, configured(&c, c.validate, nil)),
		Handler: func(inv *serpent.Invocation) error {
			file := inv.Args[0]
			if checkOnly {
				s, err := backup.Check(inv.Context(), file)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(inv.Stdout, "%s\n", describe(file, s))
				return err
			}
			if c.databaseURL != "" {
				return errors.New("restore is for SQLite databases: restore a PostgreSQL database with pg_restore")
			}
			unlock, err := datadir.Lock(c.dataDir)
			if err != nil {
				return err
			}
			defer unlock()
			s, kept, err := backup.Place(inv.Context(), file, c.databasePath(), newDeployment)
			if err != nil {
				return err
			}
			if kept != "" {
				if _, err := fmt.Fprintf(inv.Stdout, "the database that was there is %s\n", kept); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(inv.Stdout, "restored %s\n", describe(c.databasePath(), s))
			return err
		},
	}
}

func describe(file string, s backup.Summary) string {
	return fmt.Sprintf("%s: %d agents, %d workspaces, %d metadata values, %d bytes, schema version %d, deployment %s",
		file, s.Agents, s.Workspaces, s.Metadata, s.Bytes, s.SchemaVersion, s.Deployment)
}

func migrateCommand() *serpent.Command {
	var c config
	var to int64
	var status bool
	return &serpent.Command{
		Use:   "migrate",
		Short: "Show the version of the database's schema, or change it.",
		Long: "The service takes the schema to its own version when it starts. An older program does not start on a newer schema: " +
			"to go back, stop the service and take the schema back with the newer program. What the older one cannot keep is lost then.",
		Options: append(serpent.OptionSet{
			{Flag: "status", Description: "Show the version only, as without any flag.", Default: "false", Value: serpent.BoolOf(&status)},
			{Flag: "to", Description: "The version to take the schema to, up or down, while no service uses the database.",
				Default: "0", Value: atLeast(&to, 0)},
		}, showOnly(c.options(), "config", "data-dir", "database-url", "database-transaction-pooling", "lease-duration")...),
		Middleware: serpent.Chain(optiontable.NoArguments, configured(&c, c.validate, nil)),
		Handler: func(inv *serpent.Invocation) error {
			if to == 0 {
				return c.printSchema(inv.Context(), inv.Stdout)
			}
			if status {
				return errors.New("--status and --to: want one of them")
			}
			if c.databaseURL == "" {
				unlock, err := datadir.Lock(c.dataDir)
				if err != nil {
					return err
				}
				defer unlock()
			}
			before, err := store.MigrateTo(inv.Context(), c.storeOptions(), to, c.leaseDuration)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(inv.Stdout, "schema version %d, before: %d\n", to, before)
			return err
		},
	}
}

// printSchema prints the version of the schema.
func (c *config) printSchema(ctx context.Context, w io.Writer) error {
	current, newest, err := store.SchemaVersions(ctx, c.storeOptions())
	if err != nil {
		return err
	}
	var says string
	switch {
	case current == 0:
		says = "there are no tables yet"
	case current < newest:
		says = fmt.Sprintf("the service migrates it to %d when it starts", newest)
	case current > newest:
		says = fmt.Sprintf("this program knows %d, so it does not start", newest)
	default:
		says = "the newest that this program knows"
	}
	_, err = fmt.Fprintf(w, "schema version %d: %s\n", current, says)
	return err
}

// databasePath is the SQLite database.
func (c *config) databasePath() string { return filepath.Join(c.dataDir, datadir.Database) }
