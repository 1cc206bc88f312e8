package edgetest

import (
	"context"
	"errors"
	"sync"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store"
)

// ErrDown is the error of a Store that is down. Its text must not reach a client.
var ErrDown = errors.New("disk I/O error at /var/lib/secret")

// Store is the real store with a switch that takes it down.
type Store struct {
	*store.Store
	mu   sync.Mutex
	down bool
}

// SetDown takes the store down or brings it back. Calls of a store that is down
// return ErrDown.
func (s *Store) SetDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

// Err returns ErrDown if the store is down.
func (s *Store) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return ErrDown
	}
	return nil
}

// UpsertMetadata is the store's.
func (s *Store) UpsertMetadata(ctx context.Context, rows []agent.Metadata) ([]agent.ID, []agent.StoredEpoch, error) {
	if err := s.Err(); err != nil {
		return nil, nil, err
	}
	return s.Store.UpsertMetadata(ctx, rows)
}

// MetadataWithin is the store's.
func (s *Store) MetadataWithin(ctx context.Context, ids []agent.ID, limit int) ([]agent.Metadata, []agent.ID, error) {
	if err := s.Err(); err != nil {
		return nil, nil, err
	}
	return s.Store.MetadataWithin(ctx, ids, limit)
}

// ApplyChange is the store's.
func (s *Store) ApplyChange(ctx context.Context, basis int64, c agent.Change) (int64, error) {
	if err := s.Err(); err != nil {
		return 0, err
	}
	return s.Store.ApplyChange(ctx, basis, c)
}

// SaveStates is the store's.
func (s *Store) SaveStates(ctx context.Context, states []agent.State) ([]agent.StoredEpoch, error) {
	if err := s.Err(); err != nil {
		return nil, err
	}
	return s.Store.SaveStates(ctx, states)
}

// Registrations is the store's.
func (s *Store) Registrations(ctx context.Context, since int64) (agent.Registrations, error) {
	if err := s.Err(); err != nil {
		return agent.Registrations{}, err
	}
	return s.Store.Registrations(ctx, since)
}

// EachRegistration is the store's.
func (s *Store) EachRegistration(ctx context.Context, page func(agent.Registrations) error) (int64, error) {
	if err := s.Err(); err != nil {
		return 0, err
	}
	return s.Store.EachRegistration(ctx, page)
}
