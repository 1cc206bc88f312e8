// Stockcoderd is a stand-in for a stock coderd, to try the bridge against: its REST API, the
// endpoint that its agents connect to, and its metrics. With a program, agentstatsd, it also
// runs that as all-in-one beside it, and simulated agents that connect through its bridge.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coder/agentstatsd/internal/backoff"
	"github.com/coder/agentstatsd/internal/codertest/stock"
)

// stopTimeout bounds the stop of a program that was interrupted.
const stopTimeout = 20 * time.Second

// pollInterval is the time between two looks whether the bridge listens.
const pollInterval = 50 * time.Millisecond

type options struct {
	coderd          stock.Options
	listen, metrics string
	bridge, dir     string
	command         []string // the program, and further options of all-in-one
}

func main() {
	o := options{}
	flag.IntVar(&o.coderd.Workspaces, "workspaces", 20, "workspaces that are started; every fifth has two agents")
	flag.IntVar(&o.coderd.Unreachable, "unreachable", 2, "further ones, whose agents never connect")
	flag.DurationVar(&o.coderd.ReportInterval, "report-interval", 5*time.Second, "time between two reports of an agent; a stock coderd has 30s")
	flag.DurationVar(&o.coderd.Round, "round", 5*time.Second, "time between two rounds in which coderd makes its gauges; a stock coderd has 1m")
	flag.StringVar(&o.listen, "listen", "127.0.0.1:7080", "the address of its API, which agents connect to")
	flag.StringVar(&o.metrics, "metrics", "127.0.0.1:7081", "the address of its metrics")
	flag.StringVar(&o.bridge, "bridge", "127.0.0.1:2114", "the address of the bridge that the program has")
	flag.StringVar(&o.dir, "dir", "", "where its files are: api-token, of a Template Admin, and agent-tokens; empty: a temporary directory")
	flag.Parse()
	o.command = flag.Args()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "error: %s\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "stockcoderd-"); err != nil {
			return fmt.Errorf("make a directory: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	}
	coderd, err := stock.New(o.coderd)
	if err != nil {
		return err
	}
	token := rand.Text()
	coderd.SetAPIToken(token)
	for name, text := range map[string]string{"api-token": token, "agent-tokens": strings.Join(coderd.Tokens(), "\n")} {
		if err := os.WriteFile(filepath.Join(o.dir, name), []byte(text+"\n"), 0o600); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	var running sync.WaitGroup
	defer running.Wait()
	serving, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	for addr, handler := range map[string]http.Handler{o.listen: coderd.API(), o.metrics: coderd.Metrics()} {
		lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
		running.Go(func() { _ = server.Serve(lis) })
		context.AfterFunc(serving, func() { _ = server.Close() })
	}
	running.Go(func() { _ = coderd.Run(serving) })
	if len(o.command) > 0 {
		return o.runBeside(ctx, len(coderd.Tokens()))
	}
	_, err = fmt.Printf("a stand-in for coderd: http://%s, its metrics: http://%s, tokens of users and agents: %s\n", o.listen, o.metrics, o.dir)
	<-ctx.Done()
	return err
}

// allInOne are the options of the service with a bridge to this coderd.
func (o options) allInOne() []string {
	return append([]string{
		"all-in-one", "--data-dir", filepath.Join(o.dir, "data"), "--listen", o.bridge, "--upstream", "http://" + o.listen,
		"--coder-url", "http://" + o.listen, "--coder-api-token-file", filepath.Join(o.dir, "api-token"),
		"--coderd-metrics-url", "http://" + o.metrics + "/", "--scrape-interval", "5s", "--sync-interval", "10s",
		"--report-interval", o.coderd.ReportInterval.String(), "--log-level", "warn",
	}, o.command[1:]...)
}

// simulation are the options of the agents.
func (o options) simulation() []string {
	return []string{
		"simulate", "--coder-url", "http://" + o.bridge, "--agent-tokens-file", filepath.Join(o.dir, "agent-tokens"),
		"--metadata-interval", "5s", "--churn", "5m",
	}
}

// runBeside runs the service, and agents through its bridge, until ctx ends: first the agents
// stop, then the service.
func (o options) runBeside(ctx context.Context, agents int) error {
	if _, err := fmt.Printf(`agentstatsd beside a stand-in for a stock coderd, with %d simulated agents that report every %s

  what Prometheus sees   curl -s http://localhost:2112/, unless --prometheus-address says otherwise
  what coderd has        curl -s http://%s/
  coderd                 http://%s
  the bridge             http://%s
  files                  %s

Ctrl-C ends it.
`, agents, o.coderd.ReportInterval, o.metrics, o.listen, o.bridge, o.dir); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	service, stopService := context.WithCancel(context.WithoutCancel(ctx))
	defer stopService()
	ended := make(chan error, 1)
	go func() { ended <- execute(service, o.command[0], o.allInOne()) }()
	living, stopAgents := context.WithCancel(ctx)
	defer stopAgents()
	agentsEnded := make(chan error, 1)
	go func() {
		if !listens(living, o.bridge) {
			agentsEnded <- nil
			return
		}
		agentsEnded <- execute(living, o.command[0], o.simulation())
	}()
	var err error
	select {
	case err = <-ended:
		stopAgents()
		failed := <-agentsEnded
		if ctx.Err() != nil { // the terminal has interrupted all of them
			return err
		}
		return errors.Join(err, errEnded, failed)
	case err = <-agentsEnded:
		if ctx.Err() != nil { // what was under way is no matter
			err = nil
		}
	}
	stopService()
	return errors.Join(err, <-ended)
}

var errEnded = errors.New("all-in-one ended before the agents")

// listens waits until somebody listens at addr. It returns false if ctx ended first.
func listens(ctx context.Context, addr string) bool {
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err == nil {
			_ = conn.Close()
			return true
		}
		if !backoff.Sleep(ctx, pollInterval) {
			return false
		}
	}
}

// execute runs a program until ctx ends, which interrupts it.
func execute(ctx context.Context, program string, args []string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = stopTimeout
	err := cmd.Run()
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", program, args[0], err)
	}
	return nil
}
