package grpcserver

import (
	"net"

	"google.golang.org/grpc/credentials"
)

// observed are credentials whose failed handshakes are noted.
type observed struct {
	credentials.TransportCredentials
	failed func(peer net.Addr, err error)
}

// ObservedCredentials returns creds, which call failed for each handshake of a server that
// fails. gRPC itself says nothing of those.
func ObservedCredentials(creds credentials.TransportCredentials, failed func(peer net.Addr, err error)) credentials.TransportCredentials {
	return observed{creds, failed}
}

// ServerHandshake implements credentials.TransportCredentials.
func (o observed) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secured, info, err := o.TransportCredentials.ServerHandshake(conn)
	if err != nil {
		o.failed(conn.RemoteAddr(), err)
	}
	return secured, info, err
}

// Clone implements credentials.TransportCredentials.
func (o observed) Clone() credentials.TransportCredentials {
	return observed{o.TransportCredentials.Clone(), o.failed}
}
