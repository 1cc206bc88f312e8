package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/pubsub"
	"github.com/coder/agentstatsd/replica"
	"github.com/coder/agentstatsd/store"
)

// openStore opens the database: PostgreSQL if there is a URL, else SQLite.
func (s *service) openStore(ctx context.Context) error {
	c := s.config
	var err error
	s.store, err = store.Open(ctx, store.Options{
		URL:                c.databaseURL,
		Path:               filepath.Join(c.dataDir, databaseFile),
		MaxConns:           int(c.databaseMaxConns),
		TransactionPooling: c.databasePooling,
		TouchInterval:      c.metadataTouchInterval,
	}, s.log.With("component", "store"))
	if err != nil {
		return err
	}
	s.cleanups = append(s.cleanups, func() {
		if err := s.store.Close(); err != nil {
			s.log.Error("close database", "error", err)
		}
	})
	return nil
}

// newPubSub returns what carries the news.
func (s *service) newPubSub(reg prometheus.Registerer) (pubsub.Engine, error) {
	url := s.config.pubsubURL
	if url == "" {
		url = s.config.databaseURL
	}
	log := s.log.With("component", "pubsub")
	switch schemeOf(url) {
	case "":
		return pubsub.NewMemory(reg)
	case "postgres", "postgresql":
		return pubsub.NewPostgres(url, pubsub.Options{}, reg, log)
	default:
		return pubsub.NewNATS(url, pubsub.Options{}, reg, log)
	}
}

// joinReplicas makes this process one of the replicas over a shared database. With
// SQLite it is alone.
func (s *service) joinReplicas(reg prometheus.Registerer) error {
	if s.config.databaseURL == "" {
		return nil
	}
	name, err := os.Hostname()
	if err != nil {
		name = "" // it is for people
	}
	s.replicas, err = replica.New(s.store, s.pubsub, replica.Options{
		Name:          name,
		LeaseDuration: s.config.leaseDuration,
	}, reg, s.log.With("component", "replica"))
	return err
}
