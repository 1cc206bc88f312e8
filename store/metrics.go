package store

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/store/internal/measured"
)

type metrics = measured.Metrics

func newMetrics(reg prometheus.Registerer) (*metrics, error) { return measured.New(kinds[:], reg) }

// registerPools registers the numbers of the connections.
func (s *Store) registerPools(maxConns int, reg prometheus.Registerer) error {
	if s.writer == s.reader {
		return errors.Join(measured.RegisterPool(reg, "postgres", s.writer), measured.RegisterConns(reg, maxConns, s.writer))
	}
	return errors.Join(measured.RegisterPool(reg, "sqlite_writer", s.writer), measured.RegisterPool(reg, "sqlite_reader", s.reader))
}
