package coder

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/google/uuid"
)

// goneStatus is the answer for a deleted workspace by coderds that do not show it.
const goneStatus = http.StatusGone

// isMisfit reports whether a value is JSON, but not what the API has.
func isMisfit(err error) bool {
	return errors.As(err, new(*json.UnmarshalTypeError))
}

// decodeWhole decodes the answer. Its errors are decodeErrors.
func decodeWhole(d *json.Decoder, into any) error {
	if err := d.Decode(into); err != nil {
		return &decodeError{err}
	}
	return nil
}

// decodeFields decodes an object. Fields that are not among these are passed over token
// by token.
func decodeFields(d *json.Decoder, fields map[string]func(*json.Decoder) error) error {
	if err := expect(d, '{'); err != nil {
		return err
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return &decodeError{err}
		}
		decode := skip
		if known := fields[name.(string)]; known != nil {
			decode = known
		}
		if err := decode(d); err != nil {
			return &decodeError{err}
		}
	}
	return expect(d, '}')
}

// decodeElements decodes a list, which may be null.
func decodeElements(d *json.Decoder, decode func(*json.Decoder) error) error {
	token, err := d.Token()
	if err != nil || token == nil {
		return err
	}
	if token != json.Delim('[') {
		return fmt.Errorf("want a list, got %T", token)
	}
	for d.More() {
		if err := decode(d); err != nil {
			return err
		}
	}
	return expect(d, ']')
}

func expect(d *json.Decoder, delim json.Delim) error {
	token, err := d.Token()
	if err == nil && token != delim {
		err = fmt.Errorf("want %v, got %T", delim, token)
	}
	if err != nil {
		return &decodeError{err}
	}
	return nil
}

// skip passes over a value.
func skip(d *json.Decoder) error {
	for depth := 0; ; {
		token, err := d.Token()
		if err != nil {
			return err
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return nil
		}
	}
}

// id is a UUID. What is none is zero.
type id uuid.UUID

// UnmarshalJSON implements json.Unmarshaler.
func (i *id) UnmarshalJSON(b []byte) error {
	parsed, err := uuid.ParseBytes(bytes.Trim(b, `"`))
	if err == nil {
		*i = id(parsed)
	}
	return nil
}

// moment is a time. What is none is zero.
type moment time.Time

// UnmarshalJSON implements json.Unmarshaler.
func (m *moment) UnmarshalJSON(b []byte) error {
	at, err := time.Parse(time.RFC3339, string(bytes.Trim(b, `"`)))
	if err == nil && at.Year() > 1 { // Go's zero time stands for none
		*m = moment(at)
	}
	return nil
}

// workspaceJSON is what is decoded of a workspace. Scripts and environments of agents,
// values of parameters and the like have no fields here.
type workspaceJSON struct {
	ID               id     `json:"id"`
	Name             string `json:"name"`
	OwnerID          id     `json:"owner_id"`
	OwnerName        string `json:"owner_name"`
	OrganizationName string `json:"organization_name"`
	TemplateID       id     `json:"template_id"`
	TemplateName     string `json:"template_name"`
	IsPrebuild       bool   `json:"is_prebuild"`
	LatestBuild      struct {
		ID                  id     `json:"id"`
		CreatedAt           moment `json:"created_at"`
		Transition          string `json:"transition"`
		Status              string `json:"status"`
		TemplateVersionName string `json:"template_version_name"`
		Job                 struct {
			Status string `json:"status"`
		} `json:"job"`
		Resources []struct {
			Agents []agentJSON `json:"agents"`
		} `json:"resources"`
	} `json:"latest_build"`
}

type agentJSON struct {
	ID                       id     `json:"id"`
	ParentID                 id     `json:"parent_id"`
	Name                     string `json:"name"`
	CreatedAt                moment `json:"created_at"`
	StartedAt                moment `json:"started_at"`
	ReadyAt                  moment `json:"ready_at"`
	Status                   string `json:"status"`
	LifecycleState           string `json:"lifecycle_state"`
	ConnectionTimeoutSeconds int32  `json:"connection_timeout_seconds"`
	Apps                     []struct {
		ID          id     `json:"id"`
		Slug        string `json:"slug"`
		DisplayName string `json:"display_name"`
		Health      string `json:"health"`
	} `json:"apps"`
	Latency map[string]struct {
		Preferred bool    `json:"preferred"`
		LatencyMS float64 `json:"latency_ms"`
	} `json:"latency"`
}

// decodeWorkspace decodes a workspace. With an error of a field's type the workspace has
// its id all the same, if that is one.
func decodeWorkspace(d *json.Decoder, at time.Time) (Workspace, error) {
	var j workspaceJSON
	err := d.Decode(&j)
	b := &j.LatestBuild
	w := Workspace{
		ID: uuid.UUID(j.ID), Name: j.Name,
		OwnerID: uuid.UUID(j.OwnerID), OwnerName: j.OwnerName, OrganizationName: j.OrganizationName,
		TemplateID: uuid.UUID(j.TemplateID), TemplateName: j.TemplateName,
		IsPrebuild: j.IsPrebuild || uuid.UUID(j.OwnerID) == prebuildsOwner,
		Build: Build{
			ID: uuid.UUID(b.ID), CreatedAt: time.Time(b.CreatedAt),
			Transition: b.Transition, Job: b.Job.Status, Status: b.Status, TemplateVersionName: b.TemplateVersionName,
		},
		ReadAt: at,
	}
	for _, resource := range b.Resources {
		for i := range resource.Agents {
			w.Build.Agents = append(w.Build.Agents, agentOf(&resource.Agents[i]))
		}
	}
	return w, err
}

func agentOf(j *agentJSON) Agent {
	a := Agent{
		ID: uuid.UUID(j.ID), ParentID: uuid.UUID(j.ParentID), Name: j.Name,
		CreatedAt: time.Time(j.CreatedAt), StartedAt: time.Time(j.StartedAt), ReadyAt: time.Time(j.ReadyAt),
		ConnectionTimeout: time.Duration(max(0, j.ConnectionTimeoutSeconds)) * time.Second,
		Status:            j.Status, Lifecycle: j.LifecycleState,
	}
	for _, app := range j.Apps {
		a.Apps = append(a.Apps, App{ID: uuid.UUID(app.ID), Slug: app.Slug, DisplayName: app.DisplayName, Health: app.Health})
	}
	for region, l := range j.Latency {
		if a.Latencies == nil {
			a.Latencies = make(map[string]Latency, len(j.Latency))
		}
		if l.LatencyMS >= 0 && l.LatencyMS < math.MaxInt32 {
			a.Latencies[region] = Latency{l.Preferred, time.Duration(l.LatencyMS * float64(time.Millisecond))}
		}
	}
	return a
}
