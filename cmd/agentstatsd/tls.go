package main

import (
	"crypto/tls"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/credentials"

	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/handshake"
	"github.com/coder/agentstatsd/secrets"
)

// serverTLS is the TLS configuration of the gRPC listener as its files say it.
type serverTLS = secrets.Watched[*tls.Config]

// watchServerTLS returns the TLS configuration of the gRPC listener, or nil if it
// is to speak plaintext. The files are read again when they change: new
// connections use the new ones, old connections go on; files that cannot be used
// change nothing.
func watchServerTLS(c *config, log *slog.Logger) (*serverTLS, error) {
	if c.tlsCertFile == "" {
		return nil, nil
	}
	watched, err := secrets.Watch(secrets.Source[*tls.Config]{
		Name: "TLS of the gRPC listener",
		Read: func() (secrets.Files, error) {
			return secrets.ReadFiles(c.tlsCertFile, c.tlsKeyFile, c.tlsClientCAFile)
		},
		Parse: c.parseServerTLS,
	}, log)
	if err != nil {
		return nil, fmt.Errorf("--tls-cert-file, --tls-key-file, --tls-client-ca-file: %w", err)
	}
	return watched, nil
}

// parseServerTLS makes the configuration of new connections.
func (c *config) parseServerTLS(files secrets.Files) (*tls.Config, secrets.Certificates, error) {
	var certs secrets.Certificates
	cert, err := secrets.Pair{
		Cert: c.tlsCertFile, CertPEM: files[c.tlsCertFile],
		Key: c.tlsKeyFile, KeyPEM: files[c.tlsKeyFile],
	}.Parse()
	if err != nil {
		return nil, certs, err
	}
	certs.Leaf = cert.Leaf
	conf := &tls.Config{
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"h2"},
		Certificates: []tls.Certificate{cert},
	}
	if c.tlsClientCAFile != "" {
		if conf.ClientCAs, certs.ClientCAs, err = secrets.ParseCAs(c.tlsClientCAFile, files[c.tlsClientCAFile]); err != nil {
			return nil, certs, err
		}
		// Agents have no certificate; coderd may have one.
		conf.ClientAuth = tls.VerifyClientCertIfGiven
	}
	return conf, certs, nil
}

// handshakes are the limits of TLS handshakes of either listener.
func (c *config) handshakes() handshake.Options {
	return handshake.Options{Max: int(c.maxHandshakes), MaxPerAddress: int(c.maxHandshakesPerAddr), Timeout: c.handshakeTimeout}
}

// grpcCredentials returns the credentials of the gRPC listener; nil for plaintext.
func (s *service) grpcCredentials(reg prometheus.Registerer) (credentials.TransportCredentials, error) {
	if s.tls == nil {
		return nil, nil
	}
	gate, err := handshake.New(s.config.handshakes(), "grpc", reg, s.log.With("component", "grpcserver"))
	if err != nil {
		return nil, err
	}
	s.addGate("grpc handshakes", gate)
	conf := &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: gate.Config(s.tls.Get)}
	return grpcserver.ObservedCredentials(credentials.NewTLS(conf), gate.Failed), nil
}

// certificateName returns a name that the first certificate in the file is for;
// empty if there is no file.
func certificateName(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	text, _, err := secrets.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read certificate: %w", err)
	}
	cert, err := secrets.FirstCertificate(path, text)
	switch {
	case err != nil:
		return "", fmt.Errorf("read certificate: %w", err)
	case len(cert.DNSNames) > 0:
		return cert.DNSNames[0], nil
	case len(cert.IPAddresses) > 0:
		return cert.IPAddresses[0].String(), nil
	}
	return "", fmt.Errorf("read certificate: %s is for no name", path)
}
