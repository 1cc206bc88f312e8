package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/tls/certprovider"
	"google.golang.org/grpc/credentials/tls/certprovider/pemfile"
)

// certRefresh is how often the certificate files are looked at. A renewed
// certificate is used a few seconds after it was written; reading three small
// files costs next to nothing.
const certRefresh = 5 * time.Second

// serverCredentials returns TLS credentials of the gRPC listener, or nil if it
// is to speak plaintext. The files are read again when they change: new
// connections use the new ones, old connections go on; files that do not parse
// are ignored. The caller calls stop in the end.
func serverCredentials(c *config) (creds credentials.TransportCredentials, stop func(), err error) {
	if c.tlsCertFile == "" {
		return nil, func() {}, nil
	}
	// The provider only logs what is wrong with the files; at start that must
	// be an error.
	if _, err := tls.LoadX509KeyPair(c.tlsCertFile, c.tlsKeyFile); err != nil {
		return nil, nil, fmt.Errorf("load TLS certificate: %w", err)
	}
	clientAuth := tls.NoClientCert
	if c.tlsClientCAFile != "" {
		if err := checkCAFile(c.tlsClientCAFile); err != nil {
			return nil, nil, fmt.Errorf("load TLS client CA: %w", err)
		}
		// Agents have no certificate; coderd may have one.
		clientAuth = tls.VerifyClientCertIfGiven
	}
	provider, err := pemfile.NewProvider(pemfile.Options{
		CertFile:        c.tlsCertFile,
		KeyFile:         c.tlsKeyFile,
		RootFile:        c.tlsClientCAFile,
		RefreshDuration: certRefresh,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("watch TLS files: %w", err)
	}
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			return connConfig(hello.Context(), provider, clientAuth)
		},
	}), provider.Close, nil
}

// connConfig returns the configuration of one connection.
func connConfig(ctx context.Context, provider certprovider.Provider, clientAuth tls.ClientAuthType) (*tls.Config, error) {
	material, err := provider.KeyMaterial(ctx)
	if err != nil {
		return nil, fmt.Errorf("read TLS key material: %w", err)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"h2"},
		Certificates: material.Certs,
		ClientCAs:    material.Roots,
		ClientAuth:   clientAuth,
	}, nil
}

func checkCAFile(path string) error {
	certs, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !x509.NewCertPool().AppendCertsFromPEM(certs) {
		return errors.New(path + " holds no certificate")
	}
	return nil
}

// certificateName returns a name that the first certificate in the file is for;
// empty if there is no file.
func certificateName(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read certificate: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return "", fmt.Errorf("read certificate: %s holds none", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
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
