package integration

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/codertest"
	"github.com/coder/agentstatsd/internal/freeport"
)

const apiToken = "abcdefghij-0123456789abcdefghijkl"

// standIn is a stock coderd: its REST API, and what agents connect to.
type standIn struct {
	t    *testing.T
	addr string
	rest *codertest.REST
	rpc  *codertest.RPC

	mu     sync.Mutex
	server *http.Server
	conns  map[net.Conn]struct{} // guarded by mu; upgraded ones among them
}

// coderID returns an id of the kind of the n-th agent.
func coderID(kind byte, n int) (id uuid.UUID) {
	id[0] = kind
	id[14], id[15] = byte(n>>8), byte(n)
	return id
}

func agentToken(n int) string { return coderID('t', n).String() }

// newStandIn starts a coderd of so many workspaces with one agent each.
func newStandIn(t *testing.T, agents int) *standIn {
	c := &standIn{t: t, addr: freeport.Addr(), rest: codertest.NewREST(), rpc: &codertest.RPC{}, conns: make(map[net.Conn]struct{})}
	c.rest.SetToken(apiToken, codertest.Token{})
	for n := range agents {
		id, workspace := coderID('a', n), coderID('w', n)
		c.rest.Put(&codertest.Workspace{
			ID: workspace, Name: fmt.Sprintf("ws%d", n), Owner: "ada",
			Build: codertest.Build{ID: coderID('b', n), CreatedAt: time.Now(), Transition: "start", Job: "succeeded", Agents: []codertest.WorkspaceAgent{{
				ID: id, Name: "main", CreatedAt: time.Now(), Status: "connecting", Lifecycle: "starting",
			}}},
		})
		c.rpc.Add(codertest.Agent{ID: id, Token: agentToken(n), Manifest: codertest.Manifest{
			AgentID: id, WorkspaceID: workspace, AgentName: "main", OwnerUsername: "ada",
		}.Encode()})
	}
	c.start()
	t.Cleanup(c.stop)
	return c
}

func (c *standIn) start() {
	lis, err := net.Listen("tcp", c.addr)
	require.NoError(c.t, err)
	mux := http.NewServeMux()
	mux.Handle(codertest.AgentPath, c.rpc)
	mux.Handle("/", c.rest)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute, ConnState: func(conn net.Conn, state http.ConnState) {
		c.mu.Lock()
		defer c.mu.Unlock()
		switch state {
		case http.StateNew:
			c.conns[conn] = struct{}{}
		case http.StateClosed:
			delete(c.conns, conn)
		}
	}}
	c.mu.Lock()
	c.server = server
	c.mu.Unlock()
	go func() { _ = server.Serve(lis) }()
}

// stop ends coderd as a crash would: all its connections break.
func (c *standIn) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.server.Close()
	for conn := range c.conns {
		_ = conn.Close()
	}
	clear(c.conns)
}

// bridgeProcess is one bridge after another at the same addresses.
type bridgeProcess struct {
	addr, httpAddr string
	args           []string

	cmd    *exec.Cmd
	exited chan error
	log    *lockedBuffer
}

// newBridge chooses the addresses of a bridge between the coderd and the service; it starts
// nothing.
func newBridge(t *testing.T, c *standIn, s *service, args ...string) *bridgeProcess {
	b := &bridgeProcess{addr: freeport.Addr(), httpAddr: freeport.Addr(), log: new(lockedBuffer)}
	token := filepath.Join(t.TempDir(), "api-token")
	require.NoError(t, os.WriteFile(token, []byte(apiToken), 0o600))
	query := url.Values{"plaintext": {"true"}, "token_file": {s.tokenFile()}}
	b.args = append([]string{
		"bridge", "--listen", b.addr, "--upstream", "http://" + c.addr, "--prometheus-address", b.httpAddr,
		"--service-url", "agentstatsd://" + s.grpcAddr + "?" + query.Encode(),
		"--coder-url", "http://" + c.addr, "--coder-api-token-file", token, "--sync-interval", "10s",
	}, args...)
	t.Cleanup(func() {
		if b.cmd != nil {
			b.kill()
		}
		if t.Failed() {
			t.Logf("log of a bridge:\n%s", b.log.tail(8<<10))
		}
	})
	return b
}

func (b *bridgeProcess) start(t *testing.T) {
	t.Helper()
	b.cmd, b.exited = exec.Command(binary, b.args...), make(chan error, 1)
	b.cmd.Stderr = b.log
	require.NoError(t, b.cmd.Start())
	go func(cmd *exec.Cmd, exited chan<- error) { exited <- cmd.Wait(); close(exited) }(b.cmd, b.exited) // kill may come after
	(&service{httpAddr: b.httpAddr, exited: b.exited, log: b.log}).waitReady(t)
}

// kill ends the process as a crash would.
func (b *bridgeProcess) kill() {
	_ = b.cmd.Process.Kill()
	<-b.exited
	b.cmd = nil
}

// drain ends the process as an operator would.
func (b *bridgeProcess) drain(t *testing.T) {
	t.Helper()
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	err := <-b.exited
	b.cmd = nil
	require.NoError(t, err, "the bridge did not deliver all")
}

func (b *bridgeProcess) total(t *testing.T, name string) int {
	t.Helper()
	return (&service{httpAddr: b.httpAddr}).total(t, name)
}

// dialThrough connects an agent through the bridge at addr.
func dialThrough(ctx context.Context, addr string, n int) (*codertest.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := codertest.Dial(ctx, addr, agentToken(n), codertest.DialOptions{})
	if err != nil {
		return nil, err
	}
	if _, err := s.Call(ctx, codertest.GetManifest, nil); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// served returns the series of a family with a value.
func (s *service) served(t *testing.T, name, value string) (series []string) {
	t.Helper()
	_, body := s.scrape(t, "/metrics")
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, name+"{") && strings.HasSuffix(strings.TrimSpace(line), " "+value) {
			series = append(series, line)
		}
	}
	return series
}
