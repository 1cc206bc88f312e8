package bridge

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/coder/agentstatsd/bridge/internal/targets"
)

// TargetsOptions are the knobs of Targets. A zero field takes its default.
type TargetsOptions struct {
	// URLs of coderds' metrics, as CheckTarget takes them. Required.
	URLs []string
	// Interval between two scrapes of a target; 0: 15 s. A scrape may take as long, at
	// most 10 s.
	Interval time.Duration
	// MaxBodyBytes of an answer, decompressed; 0: 64 MiB.
	MaxBodyBytes int64
	// HTTPConfigFile has how targets are asked, as a scrape_config of Prometheus has it; empty:
	// plainly. It is read by NewTargets, the files that it names for each scrape.
	HTTPConfigFile string
	// MaxTargets of all URLs, which may have several addresses each; 0: 256.
	MaxTargets int
	// PassThrough has the service serve what coderd has of agents: no bridge relays them.
	PassThrough bool
}

// Targets are coderds whose own metrics are scraped and pushed, once Run is called.
type Targets struct{ *targets.Targets }

// NewTargets returns Targets with the service that conn, which it does not close, leads to
// with coderd's credential. It does nothing before Run.
func NewTargets(conn *grpc.ClientConn, opts TargetsOptions, reg prometheus.Registerer, log *slog.Logger) (*Targets, error) {
	of, err := targets.New(conn, targets.Options{
		URLs: opts.URLs, Interval: opts.Interval, MaxBodyBytes: opts.MaxBodyBytes, MaxTargets: opts.MaxTargets,
		HTTPConfigFile: opts.HTTPConfigFile, PassThrough: opts.PassThrough,
	}, reg, log)
	if err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	return &Targets{of}, nil
}

// CheckTarget returns why a URL is none of a target: of http or https, with dns+ before it
// if all addresses of a name are targets. The error does not have the URL.
func CheckTarget(url string) error { return targets.CheckURL(url) }
