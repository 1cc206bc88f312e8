// Package agentrows reads the rows of the table of agents. What takes time, to decode
// them, need not be done where they are read.
package agentrows

import (
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store/internal/stateparts"
)

// Columns are what Scan reads.
const Columns = `id, workspace_id, parent_id, name, created_at, connection_timeout,
    token_sha256, apps, metadata_keys, observed, registered`

// ErrNoWorkspace is why an agent is skipped whose workspace is.
var ErrNoWorkspace = errors.New("its workspace cannot be decoded")

// Row is a row of the table. Its registration is whole after Decode, but for the
// workspace, which has an id only.
type Row struct {
	agent.Registration
	// Err is why the row could not be scanned, or decoded; its id may be zero then.
	Err error

	created                     sql.NullInt64
	token, apps, keys, observed []byte
}

// Scan reads the row that rows is at.
func (r *Row) Scan(rows *sql.Rows) error {
	*r = Row{}
	return rows.Scan(
		&r.ID, &r.Workspace.ID, &r.Parent, &r.Name, &r.created, &r.ConnectionTimeout,
		&r.token, &r.apps, &r.keys, &r.observed, &r.Incarnation,
	)
}

// Decoder decodes rows. The zero value is ready for use, by one goroutine at a time.
type Decoder struct {
	// keys are declared by templates: most agents have those of another one.
	keys map[string][]string
}

// maxKeys bounds Decoder.keys.
const maxKeys = 1000

// Decode decodes a row that was scanned without an error. Rows with the same metadata keys
// share them.
func (d *Decoder) Decode(r *Row) {
	if r.Err == nil {
		r.Err = d.decode(r)
	}
}

func (d *Decoder) decode(r *Row) (err error) {
	if r.created.Valid {
		r.CreatedAt = time.Unix(0, r.created.Int64).UTC()
	}
	if n := copy(r.TokenHash[:], r.token); n != len(r.TokenHash) || n != len(r.token) {
		return fmt.Errorf("token_sha256 has %d bytes", len(r.token))
	}
	if r.Observed, err = stateparts.DecodeObservation(string(r.observed)); err != nil {
		return fmt.Errorf("observed: %w", err)
	}
	var apps []stateparts.App
	if err := stateparts.Decode(r.apps, &apps); err != nil {
		return fmt.Errorf("apps: %w", err)
	}
	if len(apps) > 0 {
		r.Apps = make([]agent.App, len(apps))
		for i, a := range apps {
			r.Apps[i] = agent.App(a)
		}
	}
	if r.MetadataKeys, err = d.keysOf(r.keys); err != nil {
		return fmt.Errorf("metadata_keys: %w", err)
	}
	return nil
}

// keysOf returns nil if there are none.
func (d *Decoder) keysOf(text []byte) (keys []string, err error) {
	if keys, known := d.keys[string(text)]; known {
		return keys, nil
	}
	if err := stateparts.Decode(text, &keys); err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		keys = nil
	}
	if d.keys == nil || len(d.keys) == maxKeys {
		d.keys = make(map[string][]string)
	}
	keys = slices.Clip(keys) // who appends does not write to those of others
	d.keys[string(text)] = keys
	return keys, nil
}
