package bridge

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/coder/agentstatsd/bridge/internal/coder"
	"github.com/coder/agentstatsd/bridge/internal/registrations"
	"github.com/coder/agentstatsd/client"
)

// RegistrationsOptions are the knobs of Registrations. A zero field takes its default.
type RegistrationsOptions struct {
	// CoderURL is the access URL of Coder. Required.
	CoderURL string
	// TokenFile has an API token of a user with the role Template Admin. Required.
	TokenFile string
	// MaxRequestsPerSecond of coderd's REST API, by all bridges of the service together; 0:
	// 5.
	MaxRequestsPerSecond int
	// TLS of an https URL; nil: the system's certificates verify coderd.
	TLS *tls.Config
	// SyncInterval is the time between two reads of all workspaces; 0: 5 min.
	SyncInterval time.Duration
}

// Registrations have the service know the agents and workspaces of a Coder deployment: all,
// once Run is called, and at once each for which Connected is called.
type Registrations struct {
	*registrations.Registrations
	opts  RegistrationsOptions
	coder *coder.Client
}

// NewRegistrations returns Registrations with the service that conn, which it does not
// close, leads to with coderd's credential. It does nothing before Run.
func NewRegistrations(conn *grpc.ClientConn, opts RegistrationsOptions, reg prometheus.Registerer, log *slog.Logger) (*Registrations, error) {
	from, err := coder.New(coder.Options{
		URL: opts.CoderURL, TokenFile: opts.TokenFile, MaxRequestsPerSecond: float64(opts.MaxRequestsPerSecond), TLS: opts.TLS,
	}, reg, log)
	if err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	service, err := client.NewCoderd(conn, client.CoderdOptions{Logger: log})
	if err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	of, err := registrations.New(from, service, registrations.Options{SyncInterval: opts.SyncInterval}, reg, log)
	if err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	return &Registrations{of, opts, from}, nil
}

// Options returns the options in force.
func (r *Registrations) Options() RegistrationsOptions {
	opts := r.opts
	opts.MaxRequestsPerSecond, opts.SyncInterval = int(r.coder.MaxRequestsPerSecond()), r.SyncInterval()
	return opts
}

// Reconfigure changes MaxRequestsPerSecond, and SyncInterval from the next sync on. After an
// error nothing has changed.
func (r *Registrations) Reconfigure(opts RegistrationsOptions) error {
	before := r.SyncInterval()
	if err := r.SetSyncInterval(opts.SyncInterval); err != nil {
		return fmt.Errorf("bridge options: %w", err)
	}
	if err := r.coder.SetMaxRequestsPerSecond(float64(opts.MaxRequestsPerSecond)); err != nil {
		return errors.Join(fmt.Errorf("bridge options: %w", err), r.SetSyncInterval(before))
	}
	return nil
}
