// Package codertest has a coderd for tests: what of it agents, and those who ask it for
// agents, see. It speaks by the real libraries.
package codertest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/coder/websocket"
	"github.com/google/uuid"
	"github.com/hashicorp/yamux"
	"storj.io/drpc"
	"storj.io/drpc/drpcmux"
	"storj.io/drpc/drpcserver"

	"github.com/coder/agentstatsd/simulate/coderagent"
)

// AgentPath is that of agents' connections.
const AgentPath = coderagent.Path

// Calls of an agent.
const (
	GetManifest           = coderagent.GetManifest
	UpdateStats           = coderagent.UpdateStats
	UpdateLifecycle       = coderagent.UpdateLifecycle
	BatchUpdateAppHealths = coderagent.BatchUpdateAppHealths
	BatchUpdateMetadata   = coderagent.BatchUpdateMetadata
	BatchCreateLogs       = coderagent.BatchCreateLogs
	Coordinate            = coderagent.Coordinate
	StreamDERPMaps        = coderagent.StreamDERPMaps
)

var unary = []string{GetManifest, UpdateStats, UpdateLifecycle, BatchUpdateAppHealths, BatchUpdateMetadata, BatchCreateLogs}

// Call is one that an agent made.
type Call struct {
	Agent   uuid.UUID
	Name    string
	Request []byte
}

// Agent is one that coderd knows.
type Agent struct {
	ID       uuid.UUID
	Token    string
	Manifest []byte // encoded
}

// RPC is the part of a coderd that agents connect to. Its zero value knows no agent.
type RPC struct {
	// Refuse returns the error that a call is answered with; nil: all are accepted.
	Refuse func(Call) error
	// Accept is called with each call that is accepted, and returns its answer; nil: it is
	// empty, or the manifest.
	Accept func(Call) []byte
	// Connected is called when an agent has connected, and what it returns when that
	// connection has ended. nil: nobody is told.
	Connected func(agent uuid.UUID) (ended func())
	// Forget: accepted calls are not kept.
	Forget bool
	// DERPMaps has the DERP maps that StreamDERPMaps sends, encoded.
	DERPMaps [][]byte

	mu          sync.Mutex
	agents      map[string]Agent // by token
	accepted    []Call
	connections int
	headers     []http.Header
}

// Add adds an agent, or changes it.
func (c *RPC) Add(a Agent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.agents == nil {
		c.agents = make(map[string]Agent)
	}
	c.agents[a.Token] = a
}

// Remove has coderd refuse a token, as that of a workspace that was stopped.
func (c *RPC) Remove(token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.agents, token)
}

// Accepted returns the calls that were accepted, in their order.
func (c *RPC) Accepted() []Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Call(nil), c.accepted...)
}

// Connections returns how many connections of agents are open.
func (c *RPC) Connections() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.connections
}

// Headers returns those of the handshakes so far.
func (c *RPC) Headers() []http.Header {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]http.Header(nil), c.headers...)
}

func (c *RPC) agentOf(r *http.Request) (Agent, bool) {
	token := r.Header.Get("Coder-Session-Token")
	if token == "" {
		token = r.URL.Query().Get("coder_session_token")
	}
	if cookie, err := r.Cookie("coder_session_token"); token == "" && err == nil {
		token = cookie.Value
	}
	if token == "" {
		token = strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.headers = append(c.headers, r.Header.Clone())
	a, ok := c.agents[token]
	return a, ok
}

// ServeHTTP serves the connection of an agent until it ends.
func (c *RPC) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a, ok := c.agentOf(r)
	version := r.URL.Query().Get("version")
	major, _, _ := strings.Cut(version, ".")
	switch n, err := strconv.Atoi(major); {
	case !ok:
		http.Error(w, `{"message":"Agent token is invalid."}`, http.StatusUnauthorized)
		return
	case version != "" && (err != nil || n > 2):
		http.Error(w, `{"message":"Unknown or unsupported API version"}`, http.StatusBadRequest)
		return
	}
	socket, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	socket.SetReadLimit(4 << 20)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	config := yamux.DefaultConfig()
	config.LogOutput = io.Discard
	session, err := yamux.Server(websocket.NetConn(ctx, socket, websocket.MessageBinary), config)
	if err != nil {
		return
	}
	c.count(1)
	defer c.count(-1)
	if role := r.URL.Query().Get("role"); c.Connected != nil && (role == "" || role == "agent") {
		defer c.Connected(a.ID)()
	}
	c.serve(ctx, session, a)
}

func (c *RPC) count(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.connections += n
}

// serve serves the streams of a session until it ends.
func (c *RPC) serve(ctx context.Context, session *yamux.Session, a Agent) {
	mux := drpcmux.New()
	if err := mux.Register(&handlers{c, a}, description{}); err != nil {
		panic(err)
	}
	server := drpcserver.New(mux)
	var streams sync.WaitGroup
	defer streams.Wait()
	defer func() { _ = session.Close() }()
	for {
		stream, err := session.Accept()
		if err != nil {
			return
		}
		streams.Go(func() { _ = server.ServeOne(ctx, stream) })
	}
}

// handlers are those of one connection.
type handlers struct {
	coderd *RPC
	agent  Agent
}

func (h *handlers) call(name string, in *Message) (*Message, error) {
	call := Call{h.agent.ID, name, in.Bytes}
	c := h.coderd
	if c.Refuse != nil {
		if err := c.Refuse(call); err != nil {
			return nil, err
		}
	}
	var answer []byte
	if c.Accept != nil {
		answer = c.Accept(call)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.Forget {
		c.accepted = append(c.accepted, call)
	}
	if name == GetManifest && answer == nil {
		answer = h.agent.Manifest
	}
	return &Message{Bytes: answer}, nil
}

func (h *handlers) coordinate(stream drpc.Stream) error {
	for {
		in := &Message{}
		if err := stream.MsgRecv(in, Encoding{}); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if _, err := h.call(Coordinate, in); err != nil {
			return err
		}
	}
}

func (h *handlers) derpMaps(stream drpc.Stream) error {
	for _, m := range h.coderd.DERPMaps {
		if err := stream.MsgSend(&Message{Bytes: m}, Encoding{}); err != nil {
			return err
		}
	}
	<-stream.Context().Done()
	return nil
}

// description is that of coderd's calls, as dRPC generates it.
type description struct{}

// NumMethods implements drpc.Description.
func (description) NumMethods() int { return len(unary) + 2 }

// Method implements drpc.Description.
func (description) Method(n int) (string, drpc.Encoding, drpc.Receiver, any, bool) {
	switch {
	case n < len(unary):
		name := unary[n]
		//nolint:revive // the context is second, as dRPC has it
		return name, Encoding{}, func(srv any, _ context.Context, in, _ any) (drpc.Message, error) {
			return srv.(*handlers).call(name, in.(*Message))
		}, func(*handlers, context.Context, *Message) (*Message, error) { return nil, nil }, true
	case n == len(unary):
		return Coordinate, Encoding{}, func(srv any, _ context.Context, in, _ any) (drpc.Message, error) {
			return nil, srv.(*handlers).coordinate(in.(drpc.Stream))
		}, func(*handlers, drpc.Stream) error { return nil }, true
	case n == len(unary)+1:
		return StreamDERPMaps, Encoding{}, func(srv any, _ context.Context, _, in any) (drpc.Message, error) {
			return nil, srv.(*handlers).derpMaps(in.(drpc.Stream))
		}, func(*handlers, *Message, drpc.Stream) error { return nil }, true
	}
	return "", nil, nil, nil, false
}
