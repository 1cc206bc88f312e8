// Package coderd is a small coderd: its agents speak dRPC over yamux over WebSocket with
// it, and Prometheus scrapes its registry.
package coderd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/coder/websocket"
	"github.com/hashicorp/yamux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"storj.io/drpc/drpcmux"
	"storj.io/drpc/drpcserver"

	"github.com/coder/agentstatsd/examples/coderd/agentproto"
	"github.com/coder/agentstatsd/examples/coderd/agents"
)

// maxMessage is the largest message of an agent, in bytes.
const maxMessage = 4 << 20

// Config is what an operator sets, and what coderd is made of.
type Config struct {
	Listener net.Listener
	Database *agents.Database
	Registry *prometheus.Registry
	Logger   *slog.Logger
}

// server serves the agents.
type server struct {
	Config
	// closing ends the connections of agents.
	closing   context.Context
	connected prometheus.Gauge
}

// Run serves until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	connected := prometheus.NewGauge(prometheus.GaugeOpts{Name: "coderd_example_agents_connected", Help: "Connections of agents."})
	s := &server{Config: cfg, closing: ctx, connected: connected}
	err := cfg.Registry.Register(connected)
	if err != nil {
		return err
	}
	routes := http.NewServeMux()
	routes.HandleFunc("GET /api/v2/workspaceagents/me/rpc", s.serveAgent)
	routes.Handle("GET /metrics", promhttp.HandlerFor(cfg.Registry, promhttp.HandlerOpts{}))
	web := &http.Server{Handler: routes, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = web.Close() })
	if err = web.Serve(cfg.Listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serveAgent serves one connection of an agent until its end.
func (s *server) serveAgent(w http.ResponseWriter, r *http.Request) {
	token := r.Header.Get("Coder-Session-Token")
	agent, err := s.Database.Agent(token)
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	socket, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // it has answered
	}
	socket.SetReadLimit(maxMessage)
	ctx, cancel := context.WithCancel(s.closing)
	defer cancel()
	config := yamux.DefaultConfig()
	config.LogOutput = io.Discard
	session, err := yamux.Server(websocket.NetConn(ctx, socket, websocket.MessageBinary), config)
	if err != nil {
		s.Logger.Warn("serve agent", "agent", agent.Name, "error", err)
		return
	}
	defer func() { _ = session.Close() }()
	s.connected.Inc()
	defer s.connected.Dec()
	mux := drpcmux.New()
	err = agentproto.DRPCRegisterAgent(mux, &agents.Handlers{Database: s.Database, Token: token})
	if err != nil {
		s.Logger.Warn("serve agent", "agent", agent.Name, "error", err)
		return
	}
	err = drpcserver.New(mux).Serve(ctx, session)
	s.Logger.Info("agent has left", "agent", agent.Name, "error", err)
}
