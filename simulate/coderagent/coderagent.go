// Package coderagent is an agent's side of Coder's own protocol, by the libraries that Coder's
// agents use: dRPC over yamux over a WebSocket.
package coderagent

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/coder/websocket"
	"github.com/hashicorp/yamux"
	"storj.io/drpc"
	"storj.io/drpc/drpcconn"
)

// Path is that of agents' connections.
const Path = "/api/v2/workspaceagents/me/rpc"

// Calls of an agent.
const (
	GetManifest           = "/coder.agent.v2.Agent/GetManifest"
	UpdateStats           = "/coder.agent.v2.Agent/UpdateStats"
	UpdateLifecycle       = "/coder.agent.v2.Agent/UpdateLifecycle"
	BatchUpdateAppHealths = "/coder.agent.v2.Agent/BatchUpdateAppHealths"
	BatchUpdateMetadata   = "/coder.agent.v2.Agent/BatchUpdateMetadata"
	BatchCreateLogs       = "/coder.agent.v2.Agent/BatchCreateLogs"
	Coordinate            = "/coder.tailnet.v2.Tailnet/Coordinate"
	StreamDERPMaps        = "/coder.tailnet.v2.Tailnet/StreamDERPMaps"
)

// maxMessageBytes is what both sides take of a message.
const maxMessageBytes = 4 << 20

// Message is a message of whichever type, encoded.
type Message struct{ Bytes []byte }

// Encoding leaves messages as they are.
type Encoding struct{}

// Marshal implements drpc.Encoding.
func (Encoding) Marshal(m drpc.Message) ([]byte, error) { return m.(*Message).Bytes, nil }

// Unmarshal implements drpc.Encoding.
func (Encoding) Unmarshal(b []byte, m drpc.Message) error {
	m.(*Message).Bytes = append([]byte(nil), b...)
	return nil
}

// DialOptions are how an agent connects. The zero value is that of most.
type DialOptions struct {
	// Version of the API; empty: 2.6. "none": it is not said.
	Version string
	// Role of the connection; empty: it is not said.
	Role string
	// Header of the handshake, beside the token.
	Header http.Header
	// TLS verifies a coderd with https; nil: the system's certificates do.
	TLS *tls.Config
	// Wrap returns the connection to use in place of the one that was made; nil: that.
	Wrap func(net.Conn) net.Conn
}

// Session is an agent's connection to a coderd, or to what is before it.
type Session struct {
	yamux  *yamux.Session
	cancel context.CancelFunc
}

// Dial connects as an agent does, to a coderd at a URL of http or https. ctx bounds the
// handshake only. Close the session.
func Dial(ctx context.Context, coderd *url.URL, token string, opts DialOptions) (*Session, error) {
	query := url.Values{}
	switch opts.Version {
	case "":
		query.Set("version", "2.6")
	case "none":
	default:
		query.Set("version", opts.Version)
	}
	if opts.Role != "" {
		query.Set("role", opts.Role)
	}
	header := http.Header{}
	if opts.Header != nil {
		header = opts.Header.Clone()
	}
	header.Set("Coder-Session-Token", token)
	transport := &http.Transport{TLSClientConfig: opts.TLS, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil && opts.Wrap != nil {
			conn = opts.Wrap(conn)
		}
		return conn, err
	}}
	defer transport.CloseIdleConnections()
	u := coderd.JoinPath(Path)
	u.RawQuery = query.Encode()
	//nolint:bodyclose // of an upgraded connection it is the connection itself
	socket, resp, err := websocket.Dial(ctx, u.String(), &websocket.DialOptions{HTTPHeader: header, HTTPClient: &http.Client{Transport: transport}})
	if err != nil {
		if resp != nil {
			return nil, fmt.Errorf("dial coderd: status %d: %w", resp.StatusCode, err)
		}
		return nil, fmt.Errorf("dial coderd: %w", err)
	}
	socket.SetReadLimit(maxMessageBytes)
	life, cancel := context.WithCancel(context.Background())
	config := yamux.DefaultConfig()
	config.LogOutput = io.Discard
	session, err := yamux.Client(websocket.NetConn(life, socket, websocket.MessageBinary), config)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("dial coderd: %w", err)
	}
	return &Session{session, cancel}, nil
}

// Call makes a call on a stream of its own, and returns its answer.
func (s *Session) Call(ctx context.Context, name string, request []byte) ([]byte, error) {
	conn, err := s.open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	answer := &Message{}
	if err := conn.Invoke(ctx, name, Encoding{}, &Message{request}, answer); err != nil {
		return nil, err
	}
	return answer.Bytes, nil
}

// Stream begins a call of more than one message. Close its stream at the end.
func (s *Session) Stream(ctx context.Context, name string) (drpc.Stream, error) {
	conn, err := s.open()
	if err != nil {
		return nil, err
	}
	return conn.NewStream(ctx, name, Encoding{})
}

func (s *Session) open() (*drpcconn.Conn, error) {
	stream, err := s.yamux.Open()
	if err != nil {
		return nil, fmt.Errorf("open a stream: %w", err)
	}
	return drpcconn.New(stream), nil
}

// Open opens a stream without a call.
func (s *Session) Open() (net.Conn, error) { return s.yamux.Open() }

// Done is closed when the connection has ended.
func (s *Session) Done() <-chan struct{} { return s.yamux.CloseChan() }

// Close ends the connection.
func (s *Session) Close() error {
	defer s.cancel()
	return s.yamux.Close()
}
