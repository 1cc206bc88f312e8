package secrets

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Pair is a certificate chain and its private key, in PEM.
type Pair struct {
	// Cert and Key are where they come from, for errors: files or fields.
	Cert, Key string
	// CertPEM and KeyPEM are what stands there.
	CertPEM, KeyPEM []byte
}

// Parse returns the certificate with its leaf. Its errors say what is wrong with
// which of both, and show neither.
func (p Pair) Parse() (tls.Certificate, error) {
	certs, keys := countBlocks(p.CertPEM), countBlocks(p.KeyPEM)
	switch {
	case certs.certificates == 0 && certs.keys > 0 && keys.certificates > 0:
		return tls.Certificate{}, fmt.Errorf("%s holds a private key and %s a certificate: they are swapped", p.Cert, p.Key)
	case certs.certificates == 0:
		return tls.Certificate{}, fmt.Errorf("%s holds no certificate in PEM", p.Cert)
	case keys.encrypted:
		return tls.Certificate{}, fmt.Errorf("the private key in %s is protected by a passphrase: store it without one", p.Key)
	case keys.keys == 0:
		return tls.Certificate{}, fmt.Errorf("%s holds no private key in PEM", p.Key)
	}
	cert, err := tls.X509KeyPair(p.CertPEM, p.KeyPEM)
	if err != nil {
		if strings.Contains(err.Error(), "does not match") {
			return tls.Certificate{}, fmt.Errorf("the private key in %s is not that of the certificate in %s", p.Key, p.Cert)
		}
		return tls.Certificate{}, fmt.Errorf("the certificate in %s and the private key in %s cannot be used: %w", p.Cert, p.Key, err)
	}
	return cert, nil
}

type blocks struct {
	certificates, keys int
	encrypted          bool
}

func countBlocks(text []byte) (b blocks) {
	for {
		block, rest := pem.Decode(text)
		switch {
		case block == nil:
			return b
		case block.Type == "CERTIFICATE":
			b.certificates++
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			b.keys++
			b.encrypted = b.encrypted || block.Type == "ENCRYPTED PRIVATE KEY" ||
				strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED")
		}
		text = rest
	}
}

// FirstCertificate returns the first certificate in text, which comes from name.
func FirstCertificate(name string, text []byte) (*x509.Certificate, error) {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return nil, fmt.Errorf("%s holds no certificate in PEM", name)
		}
		if block.Type == "CERTIFICATE" {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			return cert, nil
		}
		text = rest
	}
}

// ParseCAs returns the certificates in text, which comes from name.
func ParseCAs(name string, text []byte) (*x509.CertPool, []*x509.Certificate, error) {
	var certs []*x509.Certificate
	pool := x509.NewCertPool()
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		if block.Type != "CERTIFICATE" {
			continue
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil { // else of a kind that Go does not know
			pool.AddCert(cert)
			certs = append(certs, cert)
		}
	}
	if len(certs) == 0 {
		return nil, nil, fmt.Errorf("%s holds no certificate in PEM", name)
	}
	return pool, certs, nil
}

// Certificates are those of a listener.
type Certificates struct {
	// Leaf is what the listener shows; nil: it has none.
	Leaf *x509.Certificate
	// ClientCAs are what certificates of clients are verified against.
	ClientCAs []*x509.Certificate
}

// Kinds of certificates, as metrics label them.
const (
	kindServer   = "server"
	kindClientCA = "client_ca"
)

type kindOfCertificate struct {
	kind string
	cert *x509.Certificate
}

// all returns the leaf, and the authority that is valid for the longest: while one is,
// clients can have new certificates.
func (c Certificates) all() []kindOfCertificate {
	var all []kindOfCertificate
	if c.Leaf != nil {
		all = append(all, kindOfCertificate{kindServer, c.Leaf})
	}
	if len(c.ClientCAs) > 0 {
		all = append(all, kindOfCertificate{kindClientCA, slices.MaxFunc(c.ClientCAs, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })})
	}
	return all
}

// A certificate expires soon when less than expirySoon is left of its time, or than a
// fifth of the time if that is less: some live for a day only.
const (
	expirySoon      = 7 * 24 * time.Hour
	expirySoonShare = 5
)

// warningOf returns what is wrong with the time of a certificate at now; empty: nothing.
func warningOf(c kindOfCertificate, now time.Time) string {
	what := "the certificate"
	if c.kind == kindClientCA {
		what = "the certificate that those of clients are verified against"
	}
	err := CheckTime(c.cert, now)
	soon := min(expirySoon, c.cert.NotAfter.Sub(c.cert.NotBefore)/expirySoonShare)
	switch {
	case err != nil:
		return strings.Replace(err.Error(), "the certificate", what, 1)
	case c.cert.NotAfter.Sub(now) < soon:
		return fmt.Sprintf("%s expires soon, at %s", what, c.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	return ""
}

// Errors of CheckTime.
var (
	errExpired     = errors.New("has expired")
	errNotYetValid = errors.New("is not valid yet")
)

// CheckTime returns an error if the leaf is not valid at now.
func CheckTime(leaf *x509.Certificate, now time.Time) error {
	switch {
	case leaf == nil:
		return nil
	case now.After(leaf.NotAfter):
		return fmt.Errorf("the certificate %w, at %s", errExpired, leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("the certificate %w, but from %s on", errNotYetValid, leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

// Files is the content of files by their path.
type Files map[string][]byte

// ReadFiles reads the files at paths; empty paths are left out.
func ReadFiles(paths ...string) (Files, error) {
	files := make(Files, len(paths))
	for _, path := range paths {
		if path == "" {
			continue
		}
		content, _, err := ReadFile(path)
		if err != nil {
			return nil, err
		}
		files[path] = content
	}
	return files, nil
}

// Equal reports whether both have the same paths with the same content.
func (f Files) Equal(g Files) bool {
	if len(f) != len(g) {
		return false
	}
	for path, content := range f {
		other, ok := g[path]
		if !ok || !bytes.Equal(content, other) {
			return false
		}
	}
	return true
}
