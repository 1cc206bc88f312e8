package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/bridge"
	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/codertest"
	"github.com/coder/agentstatsd/internal/freeport"
	"github.com/coder/agentstatsd/internal/readiness"
)

// What a service or a bridge has, all-in-one has once. No two options share a variable or a key.
func TestAllInOneHasAllOptions(t *testing.T) {
	want := make(map[string]bool)
	for _, o := range append(new(config).options(), new(bridgeConfig).options()...) {
		want[o.Flag] = true
	}
	delete(want, "service-url")
	flags, variables, keys := make(map[string]bool), make(map[string]bool), make(map[string]bool)
	for _, o := range new(bridgeConfig).allInOneOptions() {
		require.False(t, flags[o.Flag], "--%s", o.Flag)
		require.False(t, variables[o.Env], o.Env)
		flags[o.Flag], variables[o.Env] = true, true
		if key := o.YAMLPath(); key != "" {
			require.False(t, keys[key], key)
			keys[key] = true
		}
	}
	require.Equal(t, want, flags)
}

// Service and bridge have the files of one process: each plans with a part of them.
func TestAllInOneSharesFiles(t *testing.T) {
	var b bridgeConfig
	require.NoError(t, b.shareFiles())
	require.Positive(t, b.maxAgentConns)
	require.LessOrEqual(t, b.maxAgentConns, int64(mostAgentConnections))
	require.LessOrEqual(t, b.grpcMaxConnections+2*b.maxAgentConns, openFiles()*3/4)

	b = bridgeConfig{maxAgentConns: maxAgentConnections()}
	require.EqualError(t, b.shareFiles(), fmt.Sprintf("--grpc-max-connections and twice --max-agent-connections: want at most %d, "+
		"nine tenths of the files that the process may open, got %d", maxConnections(), openFiles()*3/8+2*maxAgentConnections()))
}

// lockedBuffer may be written to and read at once.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// awaitText waits until the body of url has text.
func awaitText(t *testing.T, url, text string) {
	t.Helper()
	var body string
	require.Eventually(t, func() bool {
		body, _ = get(url)
		return strings.Contains(body, text)
	}, 3*time.Minute, 10*time.Millisecond, "want %s at %s", text, url)
}

// A stock coderd's agent is registered, passed on and served by one process, which dials
// itself with TLS or without. The bridge stops first.
func TestAllInOne(t *testing.T) {
	for _, name := range []string{"plaintext", "TLS"} {
		t.Run(name, func(t *testing.T) {
			const apiToken, agentToken = "abcdefghij-0123456789abcdefghijkl", "0b9d4c36-3f7f-4f7e-9a3e-0d7a1a2b3c4d"
			workspace, build, id := uuid.New(), uuid.New(), uuid.New()
			rest, rpc := codertest.NewREST(), new(codertest.RPC)
			rest.SetToken(apiToken, codertest.Token{})
			rest.Put(&codertest.Workspace{ID: workspace, Name: "ws1", Owner: "ada", Build: codertest.Build{
				ID: build, CreatedAt: time.Now().Add(-time.Hour), Transition: "start", Job: "succeeded",
				Agents: []codertest.WorkspaceAgent{{ID: id, Name: "main", CreatedAt: time.Now().Add(-time.Hour), Status: "connecting", Lifecycle: "starting"}},
			}})
			rpc.Add(codertest.Agent{ID: id, Token: agentToken, Manifest: codertest.Manifest{
				AgentID: id, WorkspaceID: workspace, AgentName: "main", OwnerUsername: "ada",
			}.Encode()})
			mux := http.NewServeMux()
			mux.Handle("/", rest)
			mux.Handle(codertest.AgentPath, rpc)
			coderd := httptest.NewServer(mux)
			defer coderd.Close()

			dir := t.TempDir()
			b := new(bridgeConfig)
			options := b.allInOneOptions()
			require.NoError(t, options.SetDefaults())
			b.dataDir, b.grpcAddress, b.prometheusAddress, b.listen = filepath.Join(dir, "data"), freeport.Addr(), freeport.Addr(), freeport.Addr()
			b.upstream, b.coderURL, b.coderTokenFile = coderd.URL, coderd.URL, codertest.TokenFile(t, apiToken)
			b.drainDelay, b.drainTimeout = 0, time.Millisecond
			dial := codertest.DialOptions{}
			if name == "TLS" {
				cert, key := newAuthority(t).issue(t, 1, "agentstatsd.test")
				b.tlsCertFile, b.tlsKeyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
				require.NoError(t, os.WriteFile(b.tlsCertFile, cert, 0o600))
				require.NoError(t, os.WriteFile(b.tlsKeyFile, key, 0o600))
				dial.Wrap = func(conn net.Conn) net.Conn {
					return tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
				}
			}
			require.NoError(t, b.validateAllInOne())
			log := new(lockedBuffer)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- runAllInOne(ctx, b, slog.New(slog.NewTextHandler(log, nil))) }()

			endpoint := "http://" + b.prometheusAddress
			awaitText(t, endpoint+"/metrics", `agentstatsd_bridge_registered_agents 1`)
			session, err := codertest.Dial(t.Context(), b.listen, agentToken, dial)
			require.NoError(t, err)
			defer func() { _ = session.Close() }()
			_, err = session.Call(t.Context(), codertest.GetManifest, nil)
			require.NoError(t, err)
			awaitText(t, endpoint+"/metrics", `coderd_agents_connections{agent_name="main",lifecycle_state="starting",status="connected",tailnet_node="unknown",username="ada",workspace_name="ws1"}`)
			ready, err := get(endpoint + "/-/ready")
			require.NoError(t, err)
			require.JSONEq(t, `{"ready": true}`, ready)
			cancel()
			require.NoError(t, <-ended)
			text := log.String()
			bridge, servers := strings.Index(text, "stage=bridge"), strings.Index(text, "stage=servers")
			require.True(t, bridge >= 0 && servers > bridge, text)
			require.Equal(t, 1, strings.Count(text, "msg=stopping"), text)
			require.NotContains(t, text, "level=ERROR")
			require.NotContains(t, text, apiToken)
			require.NotContains(t, text, agentToken)
		})
	}
}

// A service with a fault takes no agents away from coderd, if they come through its process.
func TestServiceTakesNoAgentsAway(t *testing.T) {
	reg := prometheus.NewRegistry()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	conn, err := client.Dial("127.0.0.1:1", client.DialOptions{Plaintext: true})
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	upstream, err := bridgeWith(t, nil).upstreamURL()
	require.NoError(t, err)
	agents, err := bridge.New(conn, bridge.Options{Upstream: upstream}, reg, log)
	require.NoError(t, err)
	registrations, err := bridge.NewRegistrations(conn, bridge.RegistrationsOptions{CoderURL: "http://coder", TokenFile: "none"}, reg, log)
	require.NoError(t, err)
	service := readiness.Answer{Reasons: map[string]string{"fleet": "reads nothing", "batcher": "writes nothing"}}

	r := (&bridgeParts{agents: agents, registrations: registrations}).beside(service)
	require.Equal(t, map[string]string{"bridge": "the bridge does not listen yet"}, r.Reasons)
	require.Subset(t, r.Warnings, []string{"batcher: writes nothing", "fleet: reads nothing"})

	r = (&bridgeParts{registrations: registrations}).beside(service)
	require.False(t, r.Ready)
	require.Equal(t, service.Reasons, r.Reasons)
}
