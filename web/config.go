package web

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	promconfig "github.com/prometheus/common/config"
	toolkit "github.com/prometheus/exporter-toolkit/web"
	"go.yaml.in/yaml/v2"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/time/rate"

	"github.com/coder/agentstatsd/secrets"
)

// Config is a web configuration file of Prometheus's exporter toolkit. It is read
// again when it changes, or a file that it names does; what cannot be used changes
// nothing.
type Config struct {
	settings *secrets.Watched[*settings]
}

// LoadConfig reads the file at path. Its errors name the file and show nothing that
// is secret.
func LoadConfig(path string, log *slog.Logger) (*Config, error) {
	watched, err := watchSettings(path, log)
	if err != nil {
		return nil, err
	}
	return &Config{watched}, nil
}

// Prepare reads the files now: see secrets.Watched.Prepare.
func (c *Config) Prepare() (use func() (changed bool), err error) { return c.settings.Prepare() }

// Warnings returns what is wrong with the files at now, and with the certificates.
func (c *Config) Warnings(now time.Time) []string { return c.settings.Warnings(now) }

// TLS reports whether the listener speaks TLS.
func (c *Config) TLS() bool { return c != nil && c.settings.Get().tls != nil }

// settings are what a web configuration file of Prometheus's exporter toolkit says.
type settings struct {
	tls     *tls.Config // nil: plaintext
	http2   bool
	headers map[string]string
	users   map[string]string // name: bcrypt hash
	limiter *rate.Limiter     // nil: none
}

// allowedHeaders are the headers that the file may set, with the values that they
// may have; none: any.
var allowedHeaders = map[string][]string{
	"Content-Security-Policy":   nil,
	"Strict-Transport-Security": nil,
	"X-Content-Type-Options":    {"nosniff"},
	"X-Frame-Options":           {"deny", "sameorigin"},
	"X-XSS-Protection":          nil,
}

// watchSettings returns the settings in the file at path, and what follows of the
// files that it names, watched. The limiter is the first one's.
func watchSettings(path string, log *slog.Logger) (*secrets.Watched[*settings], error) {
	var first *settings
	parse := func(files secrets.Files) (*settings, secrets.Certificates, error) {
		s, certs, err := parseSettings(path, files)
		if err == nil && first != nil && ((s.tls == nil) != (first.tls == nil) || s.http2 != first.http2) {
			err = fmt.Errorf("%s turns TLS or HTTP/2 on or off, which needs a restart", path)
		}
		if err != nil {
			return nil, secrets.Certificates{}, err
		}
		return s, certs, nil
	}
	use := func(s *settings) {
		switch {
		case first == nil:
			first = s
		case first.limiter != nil && s.limiter != nil:
			first.limiter.SetLimit(s.limiter.Limit())
			first.limiter.SetBurst(s.limiter.Burst())
			s.limiter = first.limiter
		}
	}
	return secrets.Watch(secrets.Source[*settings]{
		Name:  "web configuration",
		Read:  func() (secrets.Files, error) { return readSettings(path) },
		Parse: parse,
		Use:   use,
	}, log)
}

// readSettings reads the file and those that it names.
func readSettings(path string) (secrets.Files, error) {
	files, err := secrets.ReadFiles(path)
	if err != nil {
		return nil, err
	}
	conf, err := decode(path, files[path])
	if err != nil {
		return nil, err
	}
	named, err := secrets.ReadFiles(conf.TLSConfig.TLSCertPath, conf.TLSConfig.TLSKeyPath, conf.TLSConfig.ClientCAs)
	if err != nil {
		return nil, err
	}
	named[path] = files[path]
	return named, nil
}

func decode(path string, text []byte) (*toolkit.Config, error) {
	conf := &toolkit.Config{
		TLSConfig:  toolkit.TLSConfig{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS13},
		HTTPConfig: toolkit.HTTPConfig{HTTP2: true},
	}
	if err := yaml.UnmarshalStrict(text, conf); err != nil {
		return nil, fmt.Errorf("%s: %s", path, secrets.WithoutYAMLValues(err))
	}
	conf.TLSConfig.SetDirectory(filepath.Dir(path))
	return conf, nil
}

// parseSettings makes settings of the file at path and those that it names.
func parseSettings(path string, files secrets.Files) (*settings, secrets.Certificates, error) {
	var certs secrets.Certificates
	conf, err := decode(path, files[path])
	if err != nil {
		return nil, certs, err
	}
	s := &settings{http2: conf.HTTPConfig.HTTP2, headers: conf.HTTPConfig.Header, users: make(map[string]string)}
	for name, value := range s.headers {
		values, ok := allowedHeaders[name]
		if !ok || len(values) > 0 && !slices.Contains(values, value) {
			return nil, certs, fmt.Errorf("%s: http_server_config.headers: %q cannot have the value %q", path, name, value)
		}
	}
	for user, hash := range conf.Users {
		if _, err := bcrypt.Cost([]byte(hash)); err != nil {
			return nil, certs, fmt.Errorf("%s: basic_auth_users: that of %q is no bcrypt hash", path, user)
		}
		s.users[user] = string(hash)
	}
	if interval := conf.RateLimiterConfig.Interval; interval > 0 {
		s.limiter = rate.NewLimiter(rate.Every(interval), conf.RateLimiterConfig.Burst)
	}
	if conf.TLSConfig.IsEnabled() {
		if s.tls, certs, err = tlsOf(path, conf.TLSConfig, files, s.http2); err != nil {
			return nil, certs, err
		}
	}
	return s, certs, nil
}

// tlsOf makes the configuration of new connections.
func tlsOf(path string, conf toolkit.TLSConfig, files secrets.Files, http2 bool) (*tls.Config, secrets.Certificates, error) {
	var certs secrets.Certificates
	pair := secrets.Pair{
		Cert: path + " (cert)", CertPEM: []byte(conf.TLSCert),
		Key: path + " (key)", KeyPEM: []byte(conf.TLSKey),
	}
	if conf.TLSCertPath != "" {
		pair.Cert, pair.CertPEM = conf.TLSCertPath, files[conf.TLSCertPath]
	}
	if conf.TLSKeyPath != "" {
		pair.Key, pair.KeyPEM = conf.TLSKeyPath, files[conf.TLSKeyPath]
	}
	if len(pair.CertPEM) == 0 || len(pair.KeyPEM) == 0 {
		return nil, certs, fmt.Errorf("%s: tls_server_config needs a certificate and a key", path)
	}
	cert, err := pair.Parse()
	if err != nil {
		return nil, certs, err
	}
	if conf.ClientCAs != "" {
		if _, certs.ClientCAs, err = secrets.ParseCAs(conf.ClientCAs, files[conf.ClientCAs]); err != nil {
			return nil, certs, err
		}
		conf.ClientCAsText = string(files[conf.ClientCAs])
	}
	// From what was read, so that it is of one piece.
	conf.TLSCert, conf.TLSKey = string(pair.CertPEM), promconfig.Secret(pair.KeyPEM)
	conf.TLSCertPath, conf.TLSKeyPath, conf.ClientCAs = "", "", ""
	tlsConf, err := toolkit.ConfigToTLSConfig(&conf)
	if err != nil {
		return nil, certs, fmt.Errorf("%s: tls_server_config: %w", path, err)
	}
	tlsConf.GetCertificate, tlsConf.Certificates = nil, []tls.Certificate{cert}
	tlsConf.NextProtos = []string{"http/1.1"}
	if http2 {
		tlsConf.NextProtos = []string{"h2", "http/1.1"}
	}
	certs.Leaf = cert.Leaf
	return tlsConf, certs, nil
}
