package bridge_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/bridge"
	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/codertest"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// The bytes of both directions are the same with decoding and without it, in the smallest
// frames, and what they say is decoded.
func TestBytesWithAndWithoutDecoding(t *testing.T) {
	r := start(t, bridge.Options{})
	require.NoError(t, r.stop())
	r.add(1)
	var parts []codertest.Part
	coderd := make(chan net.Conn, 1)
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
			coderd <- conn
		}
	}))
	defer upstream.Close()
	u, err := url.Parse(upstream.URL)
	require.NoError(t, err)
	r.begin(bridge.Options{Upstream: u, DrainDelay: -1, DrainTimeout: 1})
	parts = codertest.Fragment(r.record(), rand.New(rand.NewPCG(1, 2)), 3)
	require.Greater(t, len(parts), 500)
	for version, calls := range map[string]float64{"2.6": 3, "1.0": 0} { // that is not decoded
		before := r.metric("agentstatsd_bridge_calls_total", "")
		agent, err := net.Dial("tcp", r.addr)
		require.NoError(t, err)
		_, err = fmt.Fprintf(agent, "GET %s?version=%s HTTP/1.1\r\nHost: coder\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", codertest.AgentPath, version)
		require.NoError(t, err)
		received := bufio.NewReader(agent)
		resp, err := http.ReadResponse(received, nil) //nolint:bodyclose // of an upgraded connection it is the connection itself
		require.NoError(t, err)
		require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
		conn := <-coderd
		for _, p := range parts { // each is there before the next is sent
			from, to := conn, io.Reader(received)
			if p.FromAgent {
				from, to = agent, conn
			}
			_, err := from.Write(p.Bytes)
			require.NoError(t, err)
			got := make([]byte, len(p.Bytes))
			_, err = io.ReadFull(to, got)
			require.NoError(t, err)
			require.True(t, bytes.Equal(p.Bytes, got))
		}
		require.NoError(t, agent.Close())
		rest, err := io.ReadAll(conn)
		require.NoError(t, err)
		require.Empty(t, rest)
		_ = conn.Close()
		r.until("what was said is decoded", func() bool {
			return r.metric("agentstatsd_bridge_decoders", "") == 0 && r.metric("agentstatsd_bridge_calls_total", "") == before+calls
		})
	}
	require.Equal(t, 1.0, r.metric("agentstatsd_bridge_decoders_given_up_total", ""), r.log)
}

// record returns what an agent and coderd say without a bridge.
func (r *rig) record() []codertest.Part {
	server := httptest.NewServer(r.coderd)
	defer server.Close()
	recorder := &codertest.Recorder{}
	s, err := codertest.Dial(r.Context(), server.Listener.Addr().String(), edgetest.Token(1), codertest.DialOptions{Wrap: recorder.Wrap})
	require.NoError(r, err)
	r.call(s, codertest.GetManifest, 1)
	r.call(s, codertest.UpdateStats, 1, &pb.Stats{RxBytes: 7})
	r.call(s, codertest.BatchCreateLogs, 1, &pb.Stats{RxBytes: 7})
	r.call(s, codertest.BatchUpdateMetadata, 2, &pb.Metadata{Key: "cpu"})
	require.NoError(r, s.Close())
	return recorder.Parts()
}

// An agent that moves from a bridge which drains to another one is counted once.
func TestDrainedBridgeHandsOver(t *testing.T) {
	r := start(t, bridge.Options{})
	r.add(1)
	received, stopWatching := r.watch()
	agent := r.dial(1, codertest.DialOptions{})
	r.call(agent, codertest.GetManifest, 1)
	sent := int64(0)
	for n := range int64(3) {
		r.call(agent, codertest.UpdateStats, 1, &pb.Stats{RxBytes: 1 << n})
		sent += 1 << n
		drained, stop := r.bridge, r.stop
		r.begin(r.opts)
		require.NoError(t, stop(), "all that was said is delivered")
		require.Error(t, drained.Ready())
		<-agent.Done()
		agent = r.dial(1, codertest.DialOptions{})
		r.call(agent, codertest.GetManifest, 1)
	}
	r.call(agent, codertest.UpdateStats, 1, &pb.Stats{RxBytes: 1 << 10})
	sent += 1 << 10
	r.until("all is counted", func() bool { return received.Load() >= sent })
	require.NoError(t, r.stop())
	require.Equal(t, sent, received.Load())
	stopWatching()
}

// watch returns what a watcher of reports has got, in bytes received.
func (r *rig) watch() (received *atomic.Int64, stop func()) {
	conn, err := client.Dial(r.service.Addr, client.DialOptions{Plaintext: true, Token: edgetest.CoderdToken})
	require.NoError(r, err)
	coderd, err := client.NewCoderd(conn, client.CoderdOptions{})
	require.NoError(r, err)
	received = new(atomic.Int64)
	ctx, cancel := context.WithCancel(r.Context())
	started, ended := make(chan struct{}), make(chan struct{})
	var once sync.Once
	go func() {
		defer close(ended)
		_ = coderd.WatchStats(ctx, client.StatsWatch{
			Name: "insights", Started: func(time.Time) { once.Do(func() { close(started) }) },
			Handle: func(batch client.StatsBatch) error {
				for _, a := range batch.Agents {
					received.Add(a.GetStats().GetRxBytes())
				}
				return nil
			},
		})
	}()
	<-started
	return received, func() {
		cancel()
		<-ended
		_ = conn.Close()
	}
}

// Agents that come back over other bridges, while bridges drain and coderd's connections
// break, are counted once: what an agent knows to be accepted, and nothing that was not.
func TestChurn(t *testing.T) {
	const agents, reports = 20, 30
	r := start(t, bridge.Options{})
	for n := range agents {
		r.add(n + 1)
	}
	received, stopWatching := r.watch()
	var mu sync.Mutex
	addrs := []string{r.addr}
	stops, regs := []func() error{r.stop}, []*prometheus.Registry{r.reg}
	r.begin(r.opts)
	addrs, stops, regs = append(addrs, r.addr), append(stops, r.stop), append(regs, r.reg)
	var known atomic.Int64 // reports that agents know to be accepted
	var group sync.WaitGroup
	for n := range agents {
		group.Go(func() {
			var s *codertest.Session
			for i := 0; i < reports; {
				if s == nil {
					mu.Lock()
					addr := addrs[(n+i)%len(addrs)]
					mu.Unlock()
					var err error
					s, err = codertest.Dial(t.Context(), addr, edgetest.Token(n+1), codertest.DialOptions{})
					if err == nil {
						_, err = s.Call(t.Context(), codertest.GetManifest, nil)
					}
					if err != nil {
						s = nil
						continue
					}
				}
				_, err := s.Call(t.Context(), codertest.UpdateStats, request(t, 1, &pb.Stats{RxBytes: 1}))
				if err == nil {
					known.Add(1)
					i++
				}
				if err != nil || i%10 == n%10 {
					_ = s.Close()
					s = nil
				}
			}
			if s != nil {
				_ = s.Close()
			}
		})
	}
	for i := range 4 {
		r.until("agents go on", func() bool { return known.Load() > int64((i+1)*agents*reports/6) })
		if i%2 == 0 {
			r.upstream.CloseClientConnections()
			continue
		}
		r.begin(r.opts)
		mu.Lock()
		stop := stops[i/2]
		addrs[i/2] = r.addr
		mu.Unlock()
		stops, regs = append(stops, r.stop), append(regs, r.reg)
		require.NoError(t, stop())
	}
	group.Wait()
	for _, stop := range stops {
		require.NoError(t, stop())
	}
	accepted := int64(0)
	for _, c := range r.coderd.Accepted() {
		if c.Name == codertest.UpdateStats {
			accepted++
		}
	}
	decoded := int64(0) // what the bridges saw to be accepted
	for _, r.reg = range regs {
		decoded += int64(r.metric("agentstatsd_bridge_calls_total", "UpdateStats"))
		require.Zero(t, r.metric("agentstatsd_bridge_decoders_given_up_total", ""))
	}
	require.EqualValues(t, agents*reports, known.Load())
	require.LessOrEqual(t, known.Load(), decoded)
	require.LessOrEqual(t, decoded, accepted)
	r.until("all is counted", func() bool { return received.Load() >= decoded })
	stopWatching()
	require.Equal(t, decoded, received.Load())
}
