package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"google.golang.org/grpc/credentials"
)

// TLSFiles names the files of a TLS client, in PEM.
type TLSFiles struct {
	// CA has the certificates that the service's is signed by; empty: the system's.
	CA string
	// Cert and Key identify the client; empty: it has no certificate. They are
	// read anew for each connection, so that they can be renewed.
	Cert, Key string
	// ServerName that the service's certificate is for; empty: the host of the
	// target.
	ServerName string
}

// Config reads the files. What the CA has later is not read: see DialOptions.TLSFiles.
func (f TLSFiles) Config() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: f.ServerName}
	if f.CA != "" {
		pem, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, fmt.Errorf("read CA certificates: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read CA certificates: %s has none", f.CA)
		}
	}
	if (f.Cert == "") != (f.Key == "") {
		return nil, errors.New("client certificate: both the certificate and the key are needed")
	}
	if f.Cert != "" {
		load := func() (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
			if err != nil {
				return nil, fmt.Errorf("read client certificate: %w", err)
			}
			return &cert, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return config, nil
}

// fileCredentials are those of TLSFiles, which are read for each handshake.
type fileCredentials struct {
	files TLSFiles

	mu   sync.Mutex
	last credentials.TransportCredentials // of files that could be used; guarded by mu
}

func newFileCredentials(files TLSFiles) (*fileCredentials, error) {
	config, err := files.Config()
	if err != nil {
		return nil, err
	}
	return &fileCredentials{files: files, last: credentials.NewTLS(config)}, nil
}

// now reads the files. It returns the credentials of before if they cannot be used: the
// handshake may succeed with these.
func (c *fileCredentials) now() credentials.TransportCredentials {
	config, err := c.files.Config()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.last = credentials.NewTLS(config)
	}
	return c.last
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *fileCredentials) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.now().ClientHandshake(ctx, authority, conn)
}

// ServerHandshake implements credentials.TransportCredentials. A client has none.
func (c *fileCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.now().ServerHandshake(conn)
}

// Info implements credentials.TransportCredentials.
func (c *fileCredentials) Info() credentials.ProtocolInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last.Info()
}

// Clone implements credentials.TransportCredentials.
func (c *fileCredentials) Clone() credentials.TransportCredentials {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &fileCredentials{files: c.files, last: c.last.Clone()}
}

// OverrideServerName implements credentials.TransportCredentials. It is called before the
// first handshake.
func (c *fileCredentials) OverrideServerName(name string) error {
	c.files.ServerName = name
	return nil
}
