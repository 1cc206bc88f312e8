package secrets

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
)

// issue returns a certificate that is its own authority, valid until after.
func issue(t *testing.T, serial int64, after time.Time) (cert, key []byte) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), DNSNames: []string{"x.test"},
		NotBefore: after.Add(-48 * time.Hour), NotAfter: after,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, priv.Public(), priv)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(priv)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

func TestPairThatCannotBeUsed(t *testing.T) {
	cert, key := issue(t, 1, time.Now().Add(time.Hour))
	_, otherKey := issue(t, 2, time.Now().Add(time.Hour))
	block, _ := pem.Decode(key)
	encrypted := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: block.Bytes})
	oldEncrypted := pem.EncodeToMemory(&pem.Block{
		Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}, Bytes: block.Bytes,
	})
	broken := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: block.Bytes[:20]})
	for name, c := range map[string]struct {
		cert, key []byte
		want      string
	}{
		"another key":    {cert, otherKey, "the private key in k is not that of the certificate in c"},
		"swapped":        {key, cert, "c holds a private key and k a certificate: they are swapped"},
		"passphrase":     {cert, encrypted, "the private key in k is protected by a passphrase: store it without one"},
		"old passphrase": {cert, oldEncrypted, "the private key in k is protected by a passphrase: store it without one"},
		"no certificate": {[]byte("garbage"), key, "c holds no certificate in PEM"},
		"no key":         {cert, []byte("garbage"), "k holds no private key in PEM"},
		"cert for key":   {cert, cert, "k holds no private key in PEM"},
		"broken key":     {cert, broken, "the certificate in c and the private key in k cannot be used: tls: failed to parse private key"},
		"empty":          {nil, nil, "c holds no certificate in PEM"},
	} {
		_, err := Pair{Cert: "c", CertPEM: c.cert, Key: "k", KeyPEM: c.key}.Parse()
		require.ErrorContains(t, err, c.want, name)
		for _, secret := range []string{"BEGIN", "garbage", string(bytes.Split(key, []byte("\n"))[1])} {
			require.NotContains(t, err.Error(), secret, name)
		}
	}
	parsed, err := Pair{Cert: "c", CertPEM: cert, Key: "k", KeyPEM: append(bytes.Clone(cert), key...)}.Parse()
	require.NoError(t, err, "a key beside its certificate is fine")
	require.EqualValues(t, 1, parsed.Leaf.SerialNumber.Int64())
}

// watchedPair is a pair in files, watched, with its log.
type watchedPair struct {
	*Watched[int64]
	cert, key string
	logged    bytes.Buffer
}

func (w *watchedPair) write(t *testing.T, cert, key []byte) {
	require.NoError(t, os.WriteFile(w.cert, cert, 0o600))
	require.NoError(t, os.WriteFile(w.key, key, 0o600))
}

func watchPair(t *testing.T, cert, key []byte) *watchedPair {
	dir := t.TempDir()
	w := &watchedPair{cert: filepath.Join(dir, "tls.crt"), key: filepath.Join(dir, "tls.key")}
	w.write(t, cert, key)
	watched, err := Watch(Source[int64]{
		Name: "a pair",
		Read: func() (Files, error) { return ReadFiles(w.cert, w.key, "") },
		Parse: func(f Files) (int64, Certificates, error) {
			cert, err := Pair{Cert: w.cert, CertPEM: f[w.cert], Key: w.key, KeyPEM: f[w.key]}.Parse()
			if err != nil {
				return 0, Certificates{}, err
			}
			return cert.Leaf.SerialNumber.Int64(), Certificates{Leaf: cert.Leaf}, nil
		},
	}, slog.New(slog.NewTextHandler(&w.logged, nil)))
	require.NoError(t, err)
	w.Watched = watched
	return w
}

// What cannot be used changes nothing, is logged once, and its content never.
func TestWatchKeepsTheLastGoodPair(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		day := time.Now().Add(24 * time.Hour)
		cert1, key1 := issue(t, 1, day)
		cert2, key2 := issue(t, 2, day)
		expiredCert, expiredKey := issue(t, 3, time.Now().Add(-time.Hour))
		w := watchPair(t, cert1, key1)
		refusals := int64(0)
		for name, c := range map[string]struct {
			cert, key []byte
			want      string
		}{
			"mismatched": {cert2, key1, "is not that of the certificate"},
			"garbage":    {[]byte("garbage"), []byte("garbage"), "holds no certificate"},
			"half":       {cert2, key2[:40], "holds no private key"},
			"expired":    {expiredCert, expiredKey, "the certificate has expired"},
		} {
			w.logged.Reset()
			w.write(t, c.cert, c.key)
			for range 3 {
				time.Sleep(2 * lookInterval)
				require.EqualValues(t, 1, w.Get(), name)
			}
			require.Equal(t, 1, bytes.Count(w.logged.Bytes(), []byte("\n")), w.logged.String())
			require.Contains(t, w.logged.String(), c.want)
			require.NotContains(t, w.logged.String(), "BEGIN")
			refusals++
			require.Equal(t, refusals, w.Refused())
			require.Len(t, w.Warnings(time.Now()), 1)
			require.Contains(t, w.Warnings(time.Now())[0], c.want)
		}
		w.logged.Reset()
		require.NoError(t, os.Remove(w.key))
		time.Sleep(2 * lookInterval)
		require.EqualValues(t, 1, w.Get())
		require.Contains(t, w.logged.String(), "no such file")

		w.write(t, cert2, key2)
		require.EqualValues(t, 1, w.Get(), "it was looked at just now")
		time.Sleep(lookInterval)
		require.EqualValues(t, 2, w.Get())
		require.EqualValues(t, 2, w.Leaf().SerialNumber.Int64())
		require.Empty(t, w.Warnings(time.Now()))

		w.logged.Reset()
		time.Sleep(24 * time.Hour)
		w.Get()
		time.Sleep(lookInterval)
		w.Get()
		require.Equal(t, 1, bytes.Count(w.logged.Bytes(), []byte("clients will refuse the certificate")), w.logged.String())
		// It cannot become worse.
		w.write(t, expiredCert, expiredKey)
		time.Sleep(lookInterval)
		require.EqualValues(t, 3, w.Get())
	})
}

func TestWatchStartsWithAnExpiredCertificate(t *testing.T) {
	cert, key := issue(t, 7, time.Now().Add(-time.Hour))
	w := watchPair(t, cert, key)
	require.EqualValues(t, 7, w.Get())
	require.Contains(t, w.logged.String(), "level=WARN msg=\"clients will refuse the certificate\" what=\"a pair\" error=\"the certificate has expired, at ")
}

func TestWatchNeedsAGoodStart(t *testing.T) {
	bad := errors.New("bad")
	_, err := Watch(Source[int]{
		Read:  func() (Files, error) { return Files{}, nil },
		Parse: func(Files) (int, Certificates, error) { return 0, Certificates{}, bad },
	}, slog.New(slog.DiscardHandler))
	require.ErrorIs(t, err, bad)
	_, err = Watch(Source[int]{Read: func() (Files, error) { return nil, bad }}, slog.New(slog.DiscardHandler))
	require.ErrorIs(t, err, bad)
}

func TestFirstCertificate(t *testing.T) {
	cert, key := issue(t, 1, time.Now())
	leaf, err := FirstCertificate("f", append(key, cert...))
	require.NoError(t, err)
	require.Equal(t, []string{"x.test"}, leaf.DNSNames)
	_, err = FirstCertificate("f", key)
	require.EqualError(t, err, "f holds no certificate in PEM")
	require.NoError(t, CheckTime(nil, time.Now()))
	require.ErrorContains(t, CheckTime(leaf, leaf.NotBefore.Add(-time.Second)), "is not valid yet")
	_, _, err = ParseCAs("f", []byte("x"))
	require.EqualError(t, err, "f holds no certificate in PEM")
}

// What is prepared changes nothing until it is used.
func TestPrepare(t *testing.T) {
	day := time.Now().Add(24 * time.Hour)
	cert1, key1 := issue(t, 1, day)
	cert2, key2 := issue(t, 2, day)
	w := watchPair(t, cert1, key1)
	use, err := w.Prepare()
	require.NoError(t, err)
	require.False(t, use(), "nothing has changed")

	w.write(t, cert2, key1)
	_, err = w.Prepare()
	require.ErrorContains(t, err, "a pair: the private key in")
	require.Zero(t, w.Refused(), "nobody wanted to use it")
	require.Empty(t, w.logged.String())
	require.Empty(t, w.Warnings(time.Now()))

	w.write(t, cert2, key2)
	use, err = w.Prepare()
	require.NoError(t, err)
	require.EqualValues(t, 1, w.Get())
	require.True(t, use())
	require.EqualValues(t, 2, w.Get())
	require.False(t, use(), "it is the current one")
	require.Empty(t, w.Warnings(time.Now()))
}

// A certificate that lives for 48 h is to be renewed when a fifth of that is left.
func TestExpiryIsWarnedAbout(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		cert, key := issue(t, 1, time.Now().Add(48*time.Hour))
		w := watchPair(t, cert, key)
		time.Sleep(48*time.Hour*4/5 - time.Minute)
		require.Empty(t, w.Warnings(time.Now()))
		time.Sleep(2 * time.Minute)
		require.Len(t, w.Warnings(time.Now()), 1)
		require.Contains(t, w.Warnings(time.Now())[0], "a pair: the certificate expires soon, at ")
		time.Sleep(lookInterval)
		w.Get()
		require.Equal(t, 1, bytes.Count(w.logged.Bytes(), []byte("a certificate is to be renewed")), w.logged.String())
	})
}

func TestCertificatesAreCollected(t *testing.T) {
	cert, _ := issue(t, 1, time.Unix(2_000_000_000, 0))
	pool, cas, err := ParseCAs("f", append(append([]byte("text\n"), cert...), cert...))
	require.NoError(t, err)
	require.NotNil(t, pool)
	w := &Watched[int]{}
	w.looked.Store(time.Now().Add(time.Hour).UnixNano())
	w.current.Store(&version[int]{certs: Certificates{Leaf: cas[0], ClientCAs: cas}})
	require.NoError(t, testutil.CollectAndCompare(w.Collector(), strings.NewReader(`
# HELP agentstatsd_tls_certificate_expiry_timestamp_seconds Unix time at which a certificate of a listener expires (server: its own; client_ca: the one for clients that is valid the longest).
# TYPE agentstatsd_tls_certificate_expiry_timestamp_seconds gauge
agentstatsd_tls_certificate_expiry_timestamp_seconds{certificate="client_ca"} 2e+09
agentstatsd_tls_certificate_expiry_timestamp_seconds{certificate="server"} 2e+09
# HELP agentstatsd_tls_files_refused_total Changes of the files of a listener that could not be used: those before are.
# TYPE agentstatsd_tls_files_refused_total counter
agentstatsd_tls_files_refused_total 0
`)))
}
