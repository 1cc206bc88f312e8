// Package figure has what was measured: raw values by subject and metric, the machine
// that they were measured on, and their medians and ratios.
package figure

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Key is what a figure is of.
type Key struct {
	// Section of the comparison, like "scrape".
	Section string `json:"section"`
	// Case within it that all subjects were put to, like "1000000 text plain".
	Case string `json:"case"`
	// Subject that was measured, like "agentstatsd".
	Subject string `json:"subject"`
	// Metric that was taken, with its unit, like "total_ms".
	Metric string `json:"metric"`
}

// Figure is one value for each round. Values of equal index, of the same case
// and of different subjects, were taken one right after the other.
type Figure struct {
	Key
	Values []float64 `json:"values"`
}

// Run is how the figures of one part came to be.
type Run struct {
	Date time.Time `json:"date"`
	// Commit of the checkout; empty: unknown.
	Commit  string    `json:"commit,omitempty"`
	Seconds float64   `json:"seconds"`
	Machine Machine   `json:"machine"`
	Modules []Module  `json:"modules"`
	Notes   []string  `json:"notes,omitempty"`
	Figures []*Figure `json:"figures"`
	index   map[Key]*Figure
}

// Module is a compared module in the version that was measured.
type Module struct {
	Path    string `json:"path"`
	Version string `json:"version"`
}

// Results are the newest run of each part, by the part's name.
type Results map[string]*Run

// Add appends a value to a figure.
func (r *Run) Add(k Key, value float64) {
	if r.index == nil {
		r.index = make(map[Key]*Figure)
		for _, f := range r.Figures {
			r.index[f.Key] = f
		}
	}
	f, ok := r.index[k]
	if !ok {
		f = &Figure{Key: k}
		r.index[k] = f
		r.Figures = append(r.Figures, f)
	}
	f.Values = append(f.Values, value)
}

// Drop forgets the figures of a section.
func (r *Run) Drop(section string) {
	r.Figures = slices.DeleteFunc(r.Figures, func(f *Figure) bool { return f.Section == section })
	r.index = nil
}

// Note keeps a remark for the reader, once.
func (r *Run) Note(format string, args ...any) {
	note := fmt.Sprintf(format, args...)
	if !slices.Contains(r.Notes, note) {
		r.Notes = append(r.Notes, note)
	}
}

// Values of a figure of any part; nil: it was not measured.
func (r Results) Values(k Key) []float64 {
	for _, run := range r {
		if values := run.Values(k); values != nil {
			return values
		}
	}
	return nil
}

// Read reads results from a file; there are none if there is no file.
func Read(path string) (Results, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Results{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read results: %w", err)
	}
	results := Results{}
	if err := json.Unmarshal(text, &results); err != nil {
		return nil, fmt.Errorf("read results of %s: %w", path, err)
	}
	return results, nil
}

// Write writes results to a file, whole or not at all.
func (r Results) Write(path string) error {
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("encode results: %w", err)
	}
	return WriteFile(path, append(text, '\n'))
}

// WriteFile writes a file, whole or not at all.
func WriteFile(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".bench-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(text)
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Values of a figure of this run; nil: it was not measured.
func (r *Run) Values(k Key) []float64 {
	for _, f := range r.Figures {
		if f.Key == k {
			return f.Values
		}
	}
	return nil
}
