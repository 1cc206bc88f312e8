package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"

	"github.com/coder/serpent"
	"google.golang.org/grpc"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/librarylog"
	"github.com/coder/agentstatsd/internal/stages"
	"github.com/coder/agentstatsd/optiontable"
)

func allInOneCommand() *serpent.Command {
	var b bridgeConfig
	return &serpent.Command{
		Use:   "all-in-one",
		Short: "Run the service and a bridge to it, in one process.",
		Long: "A stock coderd gets one process beside it. It has the options of serve and those of bridge but --service-url. What both have is set once, as of serve: " +
			"the addresses for Prometheus, TLS, --drain-timeout, the log, by its variables, too. Agents' connections break for a moment when it restarts, so it stops quickly.\n\n" +
			"  agentstatsd all-in-one --upstream http://coder:7080 --coder-url https://coder.example.com --coder-api-token-file /etc/agentstatsd/api-token",
		Options:    b.withPrint(b.allInOneOptions()),
		Middleware: serpent.Chain(optiontable.NoArguments, refuseBridgeVariables, configured(&b.config, b.validateAllInOne, freshAllInOne)),
		Handler: func(inv *serpent.Invocation) error {
			log, err := newLogger(inv.Stderr, &b.config)
			if err != nil {
				return err
			}
			librarylog.GRPC(log)
			return runAllInOne(inv.Context(), &b, log)
		},
	}
}

// freshAllInOne returns the configuration of both, not read yet.
func freshAllInOne() *candidate {
	b := new(bridgeConfig)
	return &candidate{config: &b.config, bridge: b, options: b.allInOneOptions(), validate: b.validateAllInOne}
}

// allInOneOptions are those of a service, and those of a bridge that it does not have.
func (b *bridgeConfig) allInOneOptions() serpent.OptionSet {
	options := b.config.options()
	for _, o := range bridgeVariables(b.ownOptions()) {
		if options.ByFlag(o.Flag) == nil && o.Flag != "service-url" {
			options = append(options, o)
		}
	}
	// Nobody else takes its agents while it restarts, and each attempt that is refused
	// lengthens their backoff for good.
	options.ByFlag("drain-delay").Default = "0s"
	options.ByFlag("drain-timeout").Default = "1s"
	return options
}

// refuseBridgeVariables refuses variables of a bridge for what all-in-one has once, as of a
// service: they would be ignored.
func refuseBridgeVariables(next serpent.HandlerFunc) serpent.HandlerFunc {
	return func(inv *serpent.Invocation) error {
		var errs []error
		for _, o := range new(bridgeConfig).options() {
			if inv.Environ.Get(o.Env) == "" {
				continue
			}
			switch own := inv.Command.Options.ByFlag(o.Flag); {
			case own == nil:
				errs = append(errs, fmt.Errorf("%s is in the environment: all-in-one has no --%s, as it dials itself", o.Env, o.Flag))
			case own.Env != o.Env:
				errs = append(errs, fmt.Errorf("%s is in the environment: all-in-one has --%s once, set it by %s", o.Env, o.Flag, own.Env))
			}
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
		return next(inv)
	}
}

// validateAllInOne checks the options of both. Its errors name the flags.
func (b *bridgeConfig) validateAllInOne() error {
	return errors.Join(b.config.validate(), b.validateOwn(), b.shareFiles())
}

// shareFiles sets how many connections service and bridge take together. By default each
// has half of what it has alone.
func (b *bridgeConfig) shareFiles() error {
	b.grpcMaxConnections = cmp.Or(b.grpcMaxConnections, openFiles()*3/8)
	b.maxAgentConns = cmp.Or(b.maxAgentConns, min(openFiles()*3/16, mostAgentConnections))
	if most, want := maxConnections(), b.grpcMaxConnections+2*b.maxAgentConns; want > most {
		return fmt.Errorf("--grpc-max-connections and twice --max-agent-connections: want at most %d, nine tenths of the files that the process may open, got %d", most, want)
	}
	return nil
}

// runAllInOne runs a service and a bridge to it until ctx ends. First the bridge stops, then
// the service.
func runAllInOne(ctx context.Context, b *bridgeConfig, log *slog.Logger) error {
	s, err := newService(ctx, &b.config, log)
	if err != nil {
		return unlessStopped(ctx, err)
	}
	s.InForce().bridge = b
	agents, err := b.buildBeside(ctx, s)
	if err != nil {
		s.close()
		return unlessStopped(ctx, err)
	}
	log.Info("agentstatsd bridge starts", b.places(agents)...)
	return s.run(ctx, stages.Stage{Name: "bridge", Tasks: s.bridge.tasks(agents), Timeout: b.stopTimeout()})
}

// buildBeside makes the bridge of a service, and returns its listener for agents; nil: none
// come here.
func (b *bridgeConfig) buildBeside(ctx context.Context, s *service) (net.Listener, error) {
	conf, err := b.watchTLS(s.log)
	if err != nil {
		return nil, err
	}
	conn, err := s.dial()
	if err != nil {
		return nil, err
	}
	s.cleanups = append(s.cleanups, func() { _ = conn.Close() })
	if s.bridge, err = b.buildParts(conn, s); err != nil {
		return nil, err
	}
	return b.listenForAgents(ctx, s, conf)
}

// errOtherCertificate means that the port of the service was answered by somebody else.
var errOtherCertificate = errors.New("want the certificate of this process, got another one")

// dial returns a connection to the service itself, with coderd's token.
func (s *service) dial() (*grpc.ClientConn, error) {
	token := &ownToken{plaintext: s.tls == nil}
	if _, err := token.read(s.config, s.log); err != nil {
		return nil, err
	}
	// After the service takes the new ones.
	s.AddFiles("the bridge's token", func(n *candidate, log *slog.Logger) (func() bool, error) { return token.prepare(n.config, log) })
	opts := client.DialOptions{Plaintext: s.tls == nil}
	if s.tls != nil {
		opts.TLS = &tls.Config{
			MinVersion:         tls.VersionTLS12,
			InsecureSkipVerify: true, //nolint:gosec // The certificate may be for any name: it is compared with our own.
			VerifyConnection: func(state tls.ConnectionState) error {
				if !state.PeerCertificates[0].Equal(s.tls.Leaf()) {
					return errOtherCertificate
				}
				return nil
			},
		}
	}
	return client.Dial("passthrough:///agentstatsd", opts, grpc.WithPerRPCCredentials(token), grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", s.grpcListener.Addr().String())
	}))
}

// ownToken is the first of coderd's tokens, by which the bridge calls the service.
type ownToken struct {
	text      atomic.Pointer[string]
	plaintext bool
}

// read makes the token in the file the one for calls.
func (o *ownToken) read(c *config, log *slog.Logger) (changed bool, err error) {
	use, err := o.prepare(c, log)
	if err != nil {
		return false, err
	}
	return use(), nil
}

// prepare reads the file, for a reload.
func (o *ownToken) prepare(c *config, log *slog.Logger) (use func() (changed bool), err error) {
	next, err := readToken(tokenOfCoderd, c.tokenFile(), log)
	if err != nil {
		return nil, err
	}
	return func() bool {
		before := o.text.Swap(&next)
		return before == nil || *before != next
	}, nil
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (o *ownToken) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + *o.text.Load()}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (o *ownToken) RequireTransportSecurity() bool { return !o.plaintext }
