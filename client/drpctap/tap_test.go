package drpctap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"storj.io/drpc"
	"storj.io/drpc/drpcconn"
	"storj.io/drpc/drpcmux"
	"storj.io/drpc/drpcserver"

	"github.com/coder/agentstatsd/client"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// raw is a message of types that drpctap does not know. encoding is its encoding.
type raw struct{ bytes []byte }

type encoding struct{}

func (encoding) Marshal(m drpc.Message) ([]byte, error) {
	if b := m.(*raw).bytes; string(b) != "unencodable" {
		return b, nil
	}
	return nil, errors.New("cannot be encoded")
}

func (encoding) Unmarshal(b []byte, m drpc.Message) error {
	m.(*raw).bytes = bytes.Clone(b)
	return nil
}

// api is a coderd's agent API. All its calls are handled by handle.
type api struct {
	handle func(*raw) (*raw, error)
}

func (a *api) Unary(_ context.Context, in *raw) (*raw, error) { return a.handle(in) }

// Coordinate receives until a request that is refused, or the end.
func (a *api) Coordinate(stream drpc.Stream) error {
	for {
		in := &raw{}
		if err := stream.MsgRecv(in, encoding{}); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		out, err := a.handle(in)
		if err != nil {
			return err
		}
		if err := stream.MsgSend(out, encoding{}); err != nil {
			return err
		}
	}
}

func (a *api) Streaming(in *raw, stream drpc.Stream) error {
	for range 2 {
		if err := stream.MsgSend(in, encoding{}); err != nil {
			return err
		}
	}
	return nil
}

const (
	updateStats      = "/coder.agent.v2.Agent/UpdateStats"
	updateMetadata   = "/coder.agent.v2.Agent/BatchUpdateMetadata"
	updateLifecycle  = "/coder.agent.v2.Agent/UpdateLifecycle"
	updateAppHealths = "/coder.agent.v2.Agent/BatchUpdateAppHealths"
	updateStartup    = "/coder.agent.v2.Agent/UpdateStartup"
	workspaceUpdates = "/coder.tailnet.v2.Tailnet/WorkspaceUpdates"
)

// apiDescription is as drpc generates it.
type apiDescription struct{}

var apiMethods = []string{updateStats, updateMetadata, updateLifecycle, updateAppHealths, updateStartup, workspaceUpdates, streamDERPMaps, coordinate}

func (apiDescription) NumMethods() int { return len(apiMethods) }

func (apiDescription) Method(n int) (string, drpc.Encoding, drpc.Receiver, any, bool) {
	switch {
	case n >= len(apiMethods):
		return "", nil, nil, nil, false
	case apiMethods[n] == coordinate:
		return coordinate, encoding{}, func(srv any, _ context.Context, in1, _ any) (drpc.Message, error) {
			return nil, srv.(*api).Coordinate(in1.(drpc.Stream))
		}, (*api).Coordinate, true
	case apiMethods[n] == streamDERPMaps, apiMethods[n] == workspaceUpdates:
		return apiMethods[n], encoding{}, func(srv any, _ context.Context, in1, in2 any) (drpc.Message, error) {
			return nil, srv.(*api).Streaming(in1.(*raw), in2.(drpc.Stream))
		}, (*api).Streaming, true
	}
	return apiMethods[n], encoding{}, func(srv any, ctx context.Context, in1, _ any) (drpc.Message, error) {
		return srv.(*api).Unary(ctx, in1.(*raw))
	}, (*api).Unary, true
}

// recorder is an Agent that keeps what it is called with, one line a call.
type recorder struct {
	mu    sync.Mutex
	calls []string
	err   error
	panic any
}

func (r *recorder) add(format string, args ...any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, fmt.Sprintf(format, args...))
	if r.panic != nil {
		panic(r.panic)
	}
	return r.err
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := r.calls
	r.calls = nil
	return calls
}

func (r *recorder) Report(s *agentstatsv1.Stats) {
	_ = r.add("stats rx %d, %d metrics", s.GetRxBytes(), len(s.GetMetrics()))
}

func (r *recorder) UpdateMetadata(entries ...client.Metadata) error {
	return r.add("metadata %v", entries)
}

func (r *recorder) SetLifecycle(state agentstatsv1.Lifecycle_State, at time.Time) {
	_ = r.add("lifecycle %v %v", state, at)
}

func (r *recorder) SetAppHealth(id uuid.UUID, health agentstatsv1.AppHealth) error {
	return r.add("app %s %v", id, health)
}

func (r *recorder) SetNetwork(n *agentstatsv1.Network) error {
	text := fmt.Sprintf("node %x prefers %d", n.GetNodeId(), n.GetPreferredRegionId())
	for _, region := range n.GetRegions() {
		text += fmt.Sprintf(" %d %q %v", region.GetId(), region.GetName(), region.GetLatency().AsDuration())
	}
	return r.add("%s", text)
}

// dial returns an agent's connection to a coderd whose agent API is described by desc.
func dial(t *testing.T, server *api, register func(drpc.Mux) error) drpc.Conn {
	t.Helper()
	mux := drpcmux.New()
	require.NoError(t, register(mux))
	ctx, cancel := context.WithCancel(context.Background())
	agentSide, coderdSide := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = drpcserver.New(mux).ServeOne(ctx, coderdSide)
	}()
	conn := drpcconn.New(agentSide)
	t.Cleanup(func() {
		_ = conn.Close()
		cancel()
		<-served
	})
	return conn
}

// request is one with messages in a field.
func request(t *testing.T, field protowire.Number, messages ...proto.Message) []byte {
	t.Helper()
	b := protowire.AppendTag(nil, 15, protowire.VarintType) // one that is not known
	b = protowire.AppendVarint(b, 7)
	for _, m := range messages {
		encoded, err := proto.Marshal(m)
		require.NoError(t, err)
		b = protowire.AppendTag(b, field, protowire.BytesType)
		b = protowire.AppendBytes(b, encoded)
	}
	return b
}

func TestWrap(t *testing.T) {
	at := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	stats := request(t, 1, &agentstatsv1.Stats{RxBytes: 3, Metrics: []*agentstatsv1.Stats_Metric{{Name: "m"}}})
	metadata := request(t, 2,
		&agentstatsv1.Metadata{Key: "cpu", Result: &agentstatsv1.Metadata_Result{Value: "1"}},
		&agentstatsv1.Metadata{Key: "ram", Result: &agentstatsv1.Metadata_Result{Error: "none"}})
	health := func(id []byte) *agentstatsv1.AppHealthUpdate {
		return &agentstatsv1.AppHealthUpdate{Id: id, Health: agentstatsv1.AppHealth_APP_HEALTH_HEALTHY}
	}
	app := uuid.UUID{1}
	refused := errors.New("refused by coderd")
	for name, test := range map[string]struct {
		call    string
		request []byte
		// coderd leaves the request as left, if not nil, and returns refused.
		left    []byte
		refused error
		// agent fails like this.
		err   error
		panic any
		want  []string
		log   string
	}{
		"stats":                   {call: updateStats, request: stats, want: []string{"stats rx 3, 1 metrics"}},
		"question for interval":   {call: updateStats, request: nil},
		"refused stats":           {call: updateStats, request: stats, refused: refused},
		"metadata":                {call: updateMetadata, request: metadata, want: []string{"metadata [{cpu 1 } {ram  none}]"}},
		"metadata trimmed":        {call: updateMetadata, request: metadata, left: request(t, 2, &agentstatsv1.Metadata{Key: "k"}), want: []string{"metadata [{k  }]"}},
		"lifecycle":               {call: updateLifecycle, request: request(t, 1, &agentstatsv1.Lifecycle{State: 5, ChangedAt: timestamppb.New(at)}), want: []string{"lifecycle STATE_READY 2020-01-02 03:04:05 +0000 UTC"}},
		"lifecycle without time":  {call: updateLifecycle, request: request(t, 1, &agentstatsv1.Lifecycle{State: 5}), want: []string{"lifecycle STATE_READY 0001-01-01 00:00:00 +0000 UTC"}},
		"empty lifecycle":         {call: updateLifecycle, request: request(t, 1)},
		"app healths":             {call: updateAppHealths, request: request(t, 1, health(app[:]), health(app[:])), want: []string{"app " + app.String() + " APP_HEALTH_HEALTHY", "app " + app.String() + " APP_HEALTH_HEALTHY"}},
		"one bad app":             {call: updateAppHealths, request: request(t, 1, health(nil), health(app[:])), want: []string{"app " + app.String() + " APP_HEALTH_HEALTHY"}, log: "want 16 bytes, got 0"},
		"another call":            {call: updateStartup, request: stats},
		"error of the agent":      {call: updateMetadata, request: metadata, err: errors.New("too many keys"), want: []string{"metadata [{cpu 1 } {ram  none}]"}, log: "too many keys"},
		"panic of the agent":      {call: updateStats, request: stats, panic: "ouch", want: []string{"stats rx 3, 1 metrics"}, log: "panic: ouch"},
		"not our bytes":           {call: updateStats, request: []byte{0xff}, log: "decode the message"},
		"not our message":         {call: updateStats, request: []byte{0x0a, 1, 0xff}, log: "proto:"},
		"value of another kind":   {call: updateStats, request: []byte{0x08, 1}},
		"cannot be encoded again": {call: updateStats, request: stats, left: []byte("unencodable"), log: "encode the request: cannot be encoded"},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			tap := New(nil, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
			agent := &recorder{err: test.err, panic: test.panic}
			server := &api{handle: func(in *raw) (*raw, error) {
				require.Equal(t, len(test.request), len(in.bytes))
				if test.left != nil {
					in.bytes = test.left
				}
				return &raw{[]byte("coderd's answer")}, test.refused
			}}
			conn := dial(t, server, func(mux drpc.Mux) error { return mux.Register(server, tap.Wrap(apiDescription{}, agent)) })
			answer := &raw{}
			err := conn.Invoke(t.Context(), test.call, encoding{}, &raw{test.request}, answer)
			if test.refused != nil {
				require.ErrorContains(t, err, test.refused.Error())
			} else {
				require.NoError(t, err)
				require.Equal(t, "coderd's answer", string(answer.bytes))
			}
			require.Equal(t, test.want, agent.take())
			if test.log == "" {
				require.Empty(t, log.String())
			}
			require.Contains(t, log.String(), test.log)
		})
	}
}

// A stream passes as it is. Each Tap logs one line a minute.
func TestWrapPassesStreams(t *testing.T) {
	var log bytes.Buffer
	tap := New(nil, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	agent := &recorder{err: errors.New("full")}
	server := &api{handle: func(*raw) (*raw, error) { return &raw{}, nil }}
	conn := dial(t, server, func(mux drpc.Mux) error { return mux.Register(server, tap.Wrap(apiDescription{}, agent)) })
	stream, err := conn.NewStream(t.Context(), workspaceUpdates, encoding{})
	require.NoError(t, err)
	require.NoError(t, stream.MsgSend(&raw{[]byte("a map")}, encoding{}))
	require.NoError(t, stream.CloseSend())
	for range 2 {
		got := &raw{}
		require.NoError(t, stream.MsgRecv(got, encoding{}))
		require.Equal(t, "a map", string(got.bytes))
	}
	require.NoError(t, stream.Close())
	for range 3 {
		err := conn.Invoke(t.Context(), updateMetadata, encoding{}, &raw{request(t, 2, &agentstatsv1.Metadata{Key: "k"})}, &raw{})
		require.NoError(t, err)
	}
	require.Len(t, agent.take(), 3)
	require.Equal(t, 1, strings.Count(log.String(), "\n"))
	tap.logged = tap.logged.Add(-logInterval)
	tap.logError("a call", errors.New("full"))
	require.Contains(t, log.String(), "lines_left_out=2")
}

// What cannot be relayed leaves coderd's mux as it is: without a Tap, with relays that are
// closed, and with a registration that has no id.
func TestMuxWithoutRelay(t *testing.T) {
	coderd, err := client.NewCoderd(nil, client.CoderdOptions{})
	require.NoError(t, err)
	relays, err := coderd.Relays(client.RelaysOptions{})
	require.NoError(t, err)
	require.NoError(t, relays.Close(t.Context()))
	mux := drpcmux.New()
	id := uuid.UUID{1}
	for _, test := range []struct {
		tap        *Tap
		connection Connection
		log        string
	}{
		{connection: Connection{AgentID: id}},
		{tap: New(relays, Options{}), connection: Connection{AgentID: id}, log: "closed"},
		{tap: New(relays, Options{}), connection: Connection{AgentID: id, AgentName: "main"}, log: "closed"},
		{tap: New(relays, Options{}), connection: Connection{AgentID: id, Registration: &agentstatsv1.AgentRegistration{}}, log: "id: want 16 bytes, got 0"},
		{tap: New(nil, Options{}), connection: Connection{AgentID: id}},
	} {
		var log bytes.Buffer
		if test.tap != nil {
			test.tap.log = slog.New(slog.NewTextHandler(&log, nil))
		}
		require.Same(t, mux, test.tap.Mux(t.Context(), mux, test.connection))
		require.Contains(t, log.String(), test.log)
	}
	require.Equal(t, apiDescription{}, (*Tap)(nil).Wrap(apiDescription{}, nil))
}

// Who sees calls in another way relays them as a Tap does.
func TestRelay(t *testing.T) {
	agent := &recorder{}
	relayed, err := Relay(agent, updateStats, request(t, 1, &agentstatsv1.Stats{RxBytes: 3}))
	require.NoError(t, err)
	require.True(t, relayed)
	relayed, err = Relay(agent, updateStartup, nil)
	require.NoError(t, err)
	require.False(t, relayed)
	_, err = Relay(agent, updateStats, []byte{0xff})
	require.Error(t, err)
	require.Equal(t, []string{"stats rx 3, 0 metrics"}, agent.take())
}
