package codertest

import (
	"context"
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

// DialOptions are how an agent connects. The zero value is that of most.
type DialOptions struct {
	// Version of the API; empty: 2.6. "none": it is not said.
	Version string
	// Role of the connection; empty: it is not said.
	Role string
	// Header of the handshake, beside the token.
	Header http.Header
	// Wrap returns the connection to use in place of the one that was made; nil: that.
	Wrap func(net.Conn) net.Conn
}

// Session is an agent's connection to a coderd, or to what is before it.
type Session struct {
	yamux  *yamux.Session
	cancel context.CancelFunc
}

// Dial connects as an agent does. addr is the host and port.
func Dial(ctx context.Context, addr, token string, opts DialOptions) (*Session, error) {
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
	transport := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil && opts.Wrap != nil {
			conn = opts.Wrap(conn)
		}
		return conn, err
	}}
	defer transport.CloseIdleConnections()
	u := url.URL{Scheme: "ws", Host: addr, Path: AgentPath, RawQuery: query.Encode()}
	//nolint:bodyclose // of an upgraded connection it is the connection itself
	socket, resp, err := websocket.Dial(ctx, u.String(), &websocket.DialOptions{HTTPHeader: header, HTTPClient: &http.Client{Transport: transport}})
	if err != nil {
		if resp != nil {
			return nil, fmt.Errorf("dial coderd: status %d: %w", resp.StatusCode, err)
		}
		return nil, fmt.Errorf("dial coderd: %w", err)
	}
	socket.SetReadLimit(4 << 20)
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
