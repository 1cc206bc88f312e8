package reload

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/coder/serpent"

	"github.com/coder/agentstatsd/optiontable"
)

// Configuration is what a start reads of flags, environment and a file.
type Configuration interface {
	// Options have the values, and where each came from.
	Options() serpent.OptionSet
	// Validate returns why the values do not go together.
	Validate() error
}

// Parts are what a reload changes: components that take options of a configuration C while
// they run, and files. They are added before the first Prepare.
type Parts[C Configuration] struct {
	parts []part[C]
	files []files[C]

	mu      sync.RWMutex
	inForce C // guarded by mu
}

type part[C any] struct {
	name        string
	reconfigure func(C) error
	options     func() any
}

type files[C any] struct {
	name    string
	prepare func(C, *slog.Logger) (use func() (changed bool), err error)
}

// Start sets the configuration that the process starts with, before all else.
func (p *Parts[C]) Start(c C) { p.set(c) }

// InForce returns the configuration in force. Only a reload changes which one that is.
func (p *Parts[C]) InForce() C {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.inForce
}

func (p *Parts[C]) set(c C) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inForce = c
}

// Add adds a component. reconfigure changes nothing if it returns an error. options returns
// the options that the component has now.
func (p *Parts[C]) Add(name string, reconfigure func(C) error, options func() any) {
	p.parts = append(p.parts, part[C]{name, reconfigure, options})
}

// AddFiles adds files that prepare reads, for a configuration: see secrets.Watched.Prepare.
func (p *Parts[C]) AddFiles(name string, prepare func(C, *slog.Logger) (use func() (changed bool), err error)) {
	p.files = append(p.files, files[C]{name, prepare})
}

// Each calls f with the options that each component has now.
func (p *Parts[C]) Each(f func(name string, options any)) {
	for _, part := range p.parts {
		f(part.name, part.options())
	}
}

// Prepare returns the change from the configuration in force to next, as it was read now.
// It reads the files, and changes nothing but next: of what needs a restart that gets the
// values in force. What is to be known of the files goes to log.
func (p *Parts[C]) Prepare(next C, log *slog.Logger) (*Change, error) {
	changed, needRestart, err := optiontable.Settle(p.InForce().Options(), next.Options())
	if err != nil {
		return nil, err
	}
	if len(needRestart) > 0 { // what stays may contradict what changes
		if err := next.Validate(); err != nil {
			return nil, fmt.Errorf("%w, as long as what needs a restart stays as it is", err)
		}
	}
	uses := make([]func() bool, len(p.files))
	for i, f := range p.files {
		if uses[i], err = f.prepare(next, log); err != nil {
			return nil, err
		}
	}
	return &Change{
		Options: changed, NeedRestart: needRestart, Hash: optiontable.Hash(next.Options()),
		Apply: func() ([]string, error) {
			if len(changed) > 0 {
				if err := p.reconfigure(next); err != nil {
					return nil, err
				}
			}
			used := []string{}
			for i, use := range uses {
				if use() {
					used = append(used, p.files[i].name)
				}
			}
			p.set(next)
			return used, nil
		},
	}, nil
}

// reconfigure reconfigures all components, or none.
func (p *Parts[C]) reconfigure(next C) error {
	for i, part := range p.parts {
		err := part.reconfigure(next)
		if err == nil {
			continue
		}
		errs := []error{fmt.Errorf("%s: %w", part.name, err)}
		for _, done := range slices.Backward(p.parts[:i]) {
			errs = append(errs, done.reconfigure(p.InForce()))
		}
		return errors.Join(errs...)
	}
	return nil
}
