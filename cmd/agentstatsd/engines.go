package main

import (
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/addresses"
	"github.com/coder/agentstatsd/intervals"
	"github.com/coder/agentstatsd/pubsub"
	"github.com/coder/agentstatsd/replica"
	"github.com/coder/agentstatsd/store"
)

// openStore opens the database: PostgreSQL if there is a URL, else SQLite.
func (s *service) openStore(ctx context.Context, reg prometheus.Registerer) error {
	var err error
	s.store, err = store.Open(ctx, s.config.storeOptions(), reg, s.log.With("component", "store"))
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

// deployment returns the id that the operator asks for; zero: none.
func (c *config) deployment() agent.ID {
	if c.deploymentID == "" {
		return agent.ID{}
	}
	return store.DeploymentID(c.deploymentID)
}

// newPubSub returns what carries messages between the replicas of this deployment.
func (s *service) newPubSub(ctx context.Context, reg prometheus.Registerer) (*pubsub.Deployment, error) {
	id, err := s.store.Deployment(ctx)
	if err != nil {
		return nil, err
	}
	engine, err := s.newEngine(reg, connectionName(hostname(), id.String()[:8]))
	if err != nil {
		return nil, err
	}
	return pubsub.NewDeployment(engine, id, reg)
}

// engines makes what carries messages, by the scheme of its URL.
var engines = map[string]func(url string, o pubsub.Options, reg prometheus.Registerer, log *slog.Logger) (pubsub.Engine, error){
	"": func(_ string, _ pubsub.Options, reg prometheus.Registerer, _ *slog.Logger) (pubsub.Engine, error) {
		return pubsub.NewMemory(reg)
	},
	"postgres":   newPostgresEngine,
	"postgresql": newPostgresEngine,
	"nats":       newNATSEngine,
	"tls":        newNATSEngine,
}

func newPostgresEngine(url string, o pubsub.Options, reg prometheus.Registerer, log *slog.Logger) (pubsub.Engine, error) {
	return pubsub.NewPostgres(url, o, reg, log)
}

func newNATSEngine(url string, o pubsub.Options, reg prometheus.Registerer, log *slog.Logger) (pubsub.Engine, error) {
	return pubsub.NewNATS(url, o, reg, log)
}

// newEngine returns what carries messages, those of other deployments, too.
func (s *service) newEngine(reg prometheus.Registerer, name string) (pubsub.Engine, error) {
	url := s.config.pubsubURL
	if url == "" {
		url = s.config.databaseURL
	}
	log := s.log.With("component", "pubsub")
	return engines[addresses.Scheme(url)](url, pubsub.Options{Name: name}, reg, log)
}

// hostname returns the name of this replica for people; empty if there is none.
func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name
}

// connectionName returns what the database's and the pubsub's servers show of this
// replica's connections: at most 63 bytes, as PostgreSQL keeps.
func connectionName(replica, deployment string) string {
	name := "agentstatsd"
	for _, part := range []string{deployment, replica} {
		if part != "" {
			name += " " + part
		}
	}
	return agent.ShortenText(name, 63)
}

// joinReplicas makes this process one of the replicas over a shared database. With
// SQLite it is alone.
func (s *service) joinReplicas(reg prometheus.Registerer) error {
	if s.config.databaseURL == "" {
		return nil
	}
	var err error
	s.replicas, err = replica.New(s.store, s.pubsub, s.config.replicaOptions(), reg, s.log.With("component", "replica"))
	if err != nil {
		return err
	}
	s.Add("replicas", func(n *candidate) error { return s.shareConfig(n.config, s.tokens) }, func() any { return s.tokens })
	return s.shareConfig(s.config, s.tokens)
}

// buildIntervals makes what lengthens the intervals of agents, on the decision of the
// replica that leads.
func (s *service) buildIntervals(reg prometheus.Registerer) error {
	var replicas intervals.Replicas = intervals.NewAlone(s.store)
	if s.replicas != nil {
		replicas = s.replicas
	}
	var err error
	s.intervals, err = intervals.New(s.batcher, replicas, s.config.intervalsOptions(), reg, s.log.With("component", "intervals"))
	s.Add("intervals", func(n *candidate) error { return s.intervals.Reconfigure(n.config.intervalsOptions()) },
		func() any { return s.intervals.Options() })
	return err
}

// deploymentInterval is how often a replica looks whether the deployment has another id.
const deploymentInterval = 10 * time.Second

// followDeployment makes the pubsub use a new id of the deployment, until ctx ends. A
// process that started later may have given it one, as after a move of the database to
// another cluster. read returns the id, change makes it that of the pubsub.
func followDeployment(ctx context.Context, id agent.ID, read func(context.Context) (agent.ID, error), change func(uuid.UUID) error, log *slog.Logger) error {
	ticker := time.NewTicker(deploymentInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		now, err := read(ctx)
		if err != nil || now == id || now == (agent.ID{}) {
			continue // others log that the database is unreachable
		}
		if err := change(now); err != nil {
			log.WarnContext(ctx, "another id of the deployment is not taken over, trying again", "error", err)
			continue
		}
		log.WarnContext(ctx, "the deployment has got another id", "deployment", now, "before", id)
		id = now
	}
}

// follow is followDeployment of this service.
func (s *service) follow(ctx context.Context) error {
	id, err := s.store.Deployment(ctx)
	if err != nil {
		id = agent.ID{} // to be taken over when it can be read
	}
	return followDeployment(ctx, id, s.store.Deployment, s.pubsub.Switch, s.log)
}
