// Package simulation has the command that simulates a coderd and its agents.
package simulation

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/coder/serpent"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/addresses"
	"github.com/coder/agentstatsd/optiontable"
	"github.com/coder/agentstatsd/secrets"
	"github.com/coder/agentstatsd/simulate"
)

// What ends simulate with exit code 1.
var (
	errNotAcked = errors.New("not all that was sent was acknowledged")
	errNotOnce  = errors.New("the replicas did not serve each agent once")
)

// Command returns the command simulate.
func Command() *serpent.Command {
	var (
		targets, replicas                                               []string
		tokenFile, caFile, journalFile                                  string
		useTLS, plaintext, asJSON, keep, watch, relay, repeated, steady bool
		agents, unreachable, metrics, keys, connections, coderds        int64
		changing                                                        int64
		reportInterval, metadataInterval, pushInterval                  time.Duration
		rebuildInterval, duration, ackDeadline                          time.Duration
		churn, checkInterval                                            time.Duration
		coder                                                           coderAgents
	)
	return &serpent.Command{
		Use:   "simulate",
		Short: "Run a simulated coderd and its agents against a service.",
		Long: "It registers the agents as coderd would, runs a stream for each over the real client, waits for the last " +
			"acks and prints a summary. The exit code is 1 if anything that was sent was not acknowledged. " +
			"Its agents have the same ids each time: a service takes one simulate at once.\n\n" +
			"  agentstatsd simulate --target localhost:2113 --coderd-token-file data/coderd-token --agents 2000 --duration 60s\n\n" +
			"With several targets it stands in for the load balancer before the replicas of a service, moves agents between " +
			"them, and can check that the replicas together serve each agent once.\n\n" +
			"  agentstatsd simulate --target localhost:2113,localhost:2115 --churn 1m --check-metrics http://localhost:2112,http://localhost:2114\n\n" +
			"With --coder-url agents speak Coder's own protocol, to a bridge or to coderd, which knows them by their tokens. Nothing is registered then.\n\n" +
			"  agentstatsd simulate --coder-url http://localhost:2114 --agent-tokens-file agent-tokens --churn 1m",
		Middleware: optiontable.NoArguments,
		Options: serpent.OptionSet{
			{
				Flag: "target", Env: "AGENTSTATSD_TARGET", Default: "127.0.0.1:2113",
				Description: "The gRPC addresses of the service's replicas. Each connection goes to one at random, or to another one if that cannot be reached.",
				Value:       serpent.StringArrayOf(&targets),
			},
			{
				Flag: "coderd-token-file", Env: "AGENTSTATSD_CODERD_TOKEN_FILE", Default: "data/coderd-token",
				Description: "The token that the service knows coderd by. It is read anew for each call.", Value: serpent.StringOf(&tokenFile),
			},
			{Flag: "tls", Default: "false", Description: "Dial with TLS.", Value: serpent.BoolOf(&useTLS)},
			{
				Flag: "plaintext", Default: "false",
				Description: "Dial beyond loopback without TLS. Tokens then cross that network in the clear.", Value: serpent.BoolOf(&plaintext),
			},
			{
				Flag:        "tls-ca-file",
				Description: "Certificates that the service's is verified against, PEM; implies --tls. Empty: the system's.",
				Value:       serpent.StringOf(&caFile),
			},
			{Flag: "agents", Default: "25", Description: "Number of agents.", Value: optiontable.AtLeast(&agents, 1)},
			{
				Flag: "unreachable", Default: "0",
				Description: "Further agents, that are registered and never connect.", Value: optiontable.AtLeast(&unreachable, 0),
			},
			{Flag: "metrics-per-agent", Default: "30", Description: "Samples that each agent forwards in a report.", Value: optiontable.AtLeast(&metrics, 0)},
			{Flag: "metadata-keys", Default: "10", Description: "Metadata keys of each agent.", Value: optiontable.AtLeast(&keys, 0)},
			{
				Flag: "metadata-changing", Default: "0",
				Description: "Keys of these that have a new value each --metadata-interval, in turn. 0: all.", Value: optiontable.AtLeast(&changing, 0),
			},
			{
				Flag: "metadata-repeated", Default: "false",
				Description: "Report the other keys then, too, with the value that they have, as Coder's agents do.", Value: serpent.BoolOf(&repeated),
			},
			{
				Flag: "steady", Default: "false",
				Description: "Agents change no state once they are ready: no health of an app and no network.", Value: serpent.BoolOf(&steady),
			},
			{
				Flag: "report-interval", Default: "0s",
				Description: "Time between two reports of an agent. 0: as the service says.", Value: optiontable.NotBelow(&reportInterval, 0),
			},
			{
				Flag: "metadata-interval", Default: "10s",
				Description: "Time between two values of a metadata key.", Value: optiontable.Positive(&metadataInterval),
			},
			{
				Flag: "rebuild-interval", Default: "0s",
				Description: "Mean time between two rebuilds of a workspace, under new agents. 0: none.", Value: optiontable.NotBelow(&rebuildInterval, 0),
			},
			{
				Flag: "watch", Default: "false",
				Description: "Have coderd watch what agents report, and print how much it received.", Value: serpent.BoolOf(&watch),
			},
			{
				Flag: "churn", Default: "0s",
				Description: "Mean time until an agent's connection is broken and it moves to another target. 0: it stays.", Value: optiontable.NotBelow(&churn, 0),
			},
			{
				Flag:        "check-metrics",
				Description: "URLs that Prometheus scrapes the replicas at, all of them: check that together they serve each agent once. One that cannot be scraped serves nothing. Empty: no check.",
				Value:       serpent.StringArrayOf(&replicas),
			},
			{
				Flag: "check-interval", Default: "2s",
				Description: "Time between two such checks. An agent that two of them find twice, or not at all although it is connected, makes the exit code 1.", Value: optiontable.Positive(&checkInterval),
			},
			{Flag: "coderds", Default: "1", Description: "Instances of coderd that push their families.", Value: optiontable.AtLeast(&coderds, 0)},
			{
				Flag: "push-interval", Default: "10s",
				Description: "Time between two pushes of an instance of coderd.", Value: optiontable.NotBelow(&pushInterval, time.Second),
			},
			{
				Flag: "duration", Default: "0s",
				Description: "Time until the agents stop. 0: until the program is stopped.", Value: optiontable.NotBelow(&duration, 0),
			},
			{
				Flag: "ack-deadline", Default: "30s",
				Description: "Time to wait at the end for the last acks.", Value: optiontable.Positive(&ackDeadline),
			},
			{
				Flag: "connections", Default: "0",
				Description: "Connections that the agents share. 0: one each, as real agents have.", Value: optiontable.AtLeast(&connections, 0),
			},
			{
				Flag: "relay", Default: "false",
				Description: "Have coderds relay for the agents, each over one of the --connections; 0 of these: 2.", Value: serpent.BoolOf(&relay),
			},
			{Flag: "keep", Default: "false", Description: "Leave the agents registered at the end.", Value: serpent.BoolOf(&keep)},
			{Flag: "journal", Description: "A file to write each value to that was acknowledged as durable, as JSON lines.", Value: serpent.StringOf(&journalFile)},
			{Flag: "json", Default: "false", Description: "Print the summary as one JSON object.", Value: serpent.BoolOf(&asJSON)},
			{
				Flag: "coder-url",
				Description: "URLs of bridges to a coderd, or of coderd: each agent speaks Coder's own protocol to one of them at random. Of the flags above these apply: " +
					"--tls-ca-file, --plaintext, --metrics-per-agent, --steady, --report-interval, --metadata-interval, --churn, --duration, --keep, --json.",
				Value: serpent.StringArrayOf(&coder.urls),
			},
			{
				Flag:        "agent-tokens-file",
				Description: "The tokens of the agents that do, one in a line. What they declare, their apps and metadata, coderd says.",
				Value:       serpent.StringOf(&coder.tokensFile),
			},
		},
		Handler: func(inv *serpent.Invocation) (err error) {
			log := slog.New(slog.NewTextHandler(inv.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
			if err := optiontable.FlagsOverEnvironment(inv); err != nil {
				return err
			}
			if len(coder.urls) > 0 || coder.tokensFile != "" {
				opts, err := coder.options(caFile, plaintext, log)
				if err != nil {
					return err
				}
				opts.MetricsPerAgent, opts.ReportInterval, opts.MetadataInterval = optiontable.OrNone(int(metrics)), reportInterval, metadataInterval
				opts.Churn, opts.Steady, opts.Duration, opts.Keep, opts.Progress = churn, steady, duration, keep, inv.Stderr
				summary, err := simulate.RunCoder(inv.Context(), opts, log)
				if err != nil {
					return err
				}
				return printSummary(inv, summary, asJSON)
			}
			if !useTLS && caFile == "" && !plaintext {
				for _, target := range targets {
					if loopback, err := addresses.IsLoopback(target); err != nil {
						return fmt.Errorf("--target %s: %w", target, err)
					} else if !loopback {
						return fmt.Errorf("--target %s is beyond loopback: give --tls, or --plaintext", target)
					}
				}
			}
			if churn > 0 && len(targets) < 2 {
				return fmt.Errorf("--churn %s moves agents between targets: give at least two --target", churn)
			}
			dial, err := DialOptions(tokenFile, caFile, "", useTLS, log)
			if err != nil {
				return err
			}
			opts := simulate.Options{
				Targets: targets, Dial: dial, Churn: churn, Watch: watch,
				Metrics: replicas, CheckInterval: checkInterval,
				Agents: int(agents), Unreachable: int(unreachable), RebuildInterval: optiontable.OrNone(rebuildInterval),
				MetricsPerAgent: optiontable.OrNone(int(metrics)), MetadataKeys: optiontable.OrNone(int(keys)), MetadataChanging: int(changing),
				MetadataRepeated: repeated, Steady: steady,
				ReportInterval: reportInterval, MetadataInterval: metadataInterval,
				Coderds: optiontable.OrNone(int(coderds)), PushInterval: pushInterval,
				Duration: duration, DrainTimeout: ackDeadline,
				Keep: keep, Connections: int(connections), Relay: relay, Progress: inv.Stderr,
			}
			if journalFile != "" {
				journal, openErr := os.OpenFile(journalFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
				if openErr != nil {
					return fmt.Errorf("open journal: %w", openErr)
				}
				defer func() { err = errors.Join(err, journal.Close()) }()
				opts.Journal = journal
			}
			summary, err := simulate.Run(inv.Context(), opts, log)
			if err != nil {
				return err
			}
			return printSummary(inv, summary, asJSON)
		},
	}
}

// printSummary prints what a simulation did, and returns what was not as it should be.
func printSummary(inv *serpent.Invocation, summary simulate.Summary, asJSON bool) error {
	write := summary.WriteText
	if asJSON {
		write = summary.WriteJSON
	}
	if err := write(inv.Stdout); err != nil {
		return err
	}
	switch {
	case !summary.Check.Clean():
		return errNotOnce
	case !summary.Complete():
		return errNotAcked
	}
	return nil
}

// DialOptions returns how to dial the service as coderd: with TLS if asked
// to, or if there is a CA. An empty server name is the host of the target.
func DialOptions(tokenFile, caFile, serverName string, useTLS bool, log *slog.Logger) (client.DialOptions, error) {
	if _, err := secrets.LoadTokens("coderd's token", tokenFile, log); err != nil {
		return client.DialOptions{}, err
	}
	if !useTLS && caFile == "" {
		return client.DialOptions{TokenFile: tokenFile, Plaintext: true}, nil
	}
	config, err := client.TLSFiles{CA: caFile, ServerName: serverName}.Config()
	if err != nil {
		return client.DialOptions{}, err
	}
	return client.DialOptions{TokenFile: tokenFile, TLS: config}, nil
}
