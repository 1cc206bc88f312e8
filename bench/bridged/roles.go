package bridged

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/bench/load"
	"github.com/coder/agentstatsd/bench/process"
	"github.com/coder/agentstatsd/bridge"
	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/codertest"
)

// Roles that children play.
var Roles = map[string]process.Role{
	"bridged-coderd": serveCoderd,
	"bridged-proxy":  serveProxy,
	"bridged-agents": runAgents,
}

func listen(ctx context.Context) (net.Listener, error) {
	var lc net.ListenConfig
	lis, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return lis, nil
}

// serveHTTP serves until the console ends.
func serveHTTP(lis net.Listener, handler http.Handler, c *process.Console) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(lis) }()
	defer func() { _ = server.Close() }()
	return c.Serve(lis.Addr().String(), map[string]process.Handler{"free": free})
}

func free(func(any) error) (any, error) {
	debug.FreeOSMemory()
	return nil, nil
}

type coderdArgs struct{ Agents int }

func token(n int) string { return load.ID(n).String() }

// serveCoderd is the role of a coderd that knows some agents.
func serveCoderd(ctx context.Context, c *process.Console) error {
	var args coderdArgs
	if err := c.Args(&args); err != nil {
		return err
	}
	coderd := &codertest.RPC{Forget: true}
	for n := range args.Agents {
		id := load.ID(n)
		coderd.Add(codertest.Agent{ID: id, Token: token(n), Manifest: codertest.Manifest{
			AgentID: id, WorkspaceID: id, AgentName: "main", OwnerUsername: "ada",
		}.Encode()})
	}
	lis, err := listen(ctx)
	if err != nil {
		return err
	}
	return serveHTTP(lis, coderd, c)
}

type proxyArgs struct {
	Upstream string
	// Bridge: it is one, of the service with coderd's token, and relays so many agents.
	Bridge         bool
	Service, Token string
	MaxRelayed     int
}

// serveProxy is the role of what stands between agents and coderd.
func serveProxy(ctx context.Context, c *process.Console) error {
	var args proxyArgs
	if err := c.Args(&args); err != nil {
		return err
	}
	upstream := &url.URL{Scheme: "http", Host: args.Upstream}
	lis, err := listen(ctx)
	if err != nil {
		return err
	}
	if !args.Bridge {
		return serveHTTP(lis, httputil.NewSingleHostReverseProxy(upstream), c)
	}
	conn, err := client.Dial(args.Service, client.DialOptions{Token: args.Token, Plaintext: true})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	b, err := bridge.New(conn, bridge.Options{
		Upstream: upstream, DrainDelay: -1, DrainTimeout: time.Millisecond, CloseTimeout: time.Second, MaxAgents: args.MaxRelayed,
	}, prometheus.NewRegistry(), log)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	var serving sync.WaitGroup
	serving.Go(func() { _ = b.Serve(ctx, lis) }) // what is not delivered is of no agent
	err = c.Serve(lis.Addr().String(), map[string]process.Handler{"free": free})
	stop()
	serving.Wait()
	return err
}

var errNoAgents = errors.New("want at least one agent")
