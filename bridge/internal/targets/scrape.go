package targets

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"time"

	"github.com/prometheus/common/config"
	"github.com/prometheus/common/expfmt"

	"github.com/coder/agentstatsd/secrets"
)

const (
	// accept asks for protobuf, which alone has native histograms, and else for text.
	accept = string(expfmt.FmtProtoDelim) + ";q=0.7,text/plain;version=0.0.4;q=0.4"
	// maxHeaderBytes of an answer.
	maxHeaderBytes = 64 << 10
)

// scrapeError is why a scrape gave no snapshot.
type scrapeError struct {
	outcome outcome
	err     error
}

func (e *scrapeError) Error() string { return e.err.Error() }
func (e *scrapeError) Unwrap() error { return e.err }

// dialFunc opens a connection.
type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// scraper scrapes one target.
type scraper struct {
	url     string
	timeout time.Duration
	maxBody int64
	// connect makes the client, which reads files that may not be there yet.
	connect func() (*http.Client, error)
	client  *http.Client // nil: it is not made yet
}

// newScraper returns one that asks for u, at address if it is not empty: the name in u is
// that of the request and of the certificate nevertheless. conf may be nil.
func newScraper(u *url.URL, address string, opts Options, conf *config.HTTPClientConfig) *scraper {
	dial := opts.Dial
	if address != "" {
		dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return opts.Dial(ctx, network, address)
		}
	}
	return &scraper{
		url: u.String(), timeout: opts.Timeout, maxBody: opts.MaxBodyBytes,
		connect: func() (*http.Client, error) { return newClient(opts, dial, conf) },
	}
}

// newClient returns what makes the requests of a target. It follows no redirect, which
// would be another target.
func newClient(opts Options, dial dialFunc, conf *config.HTTPClientConfig) (*http.Client, error) {
	client := &http.Client{Transport: &http.Transport{
		DialContext: dial, MaxIdleConns: 1, IdleConnTimeout: 2 * opts.Interval, MaxResponseHeaderBytes: maxHeaderBytes,
		TLSHandshakeTimeout: opts.Timeout, DisableCompression: true,
	}}
	if conf != nil {
		var err error
		client, err = config.NewClientFromConfig(*conf, "coderd", config.WithDialContextFunc(dial), config.WithIdleConnTimeout(2*opts.Interval))
		if err != nil {
			return nil, httpConfigError(err)
		}
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return client, nil
}

// readHTTPConfig reads a configuration of Prometheus's; nil: there is none.
func readHTTPConfig(path string) (*config.HTTPClientConfig, error) {
	if path == "" {
		return nil, nil
	}
	text, _, err := secrets.ReadFile(path)
	if err != nil {
		return nil, httpConfigError(err)
	}
	conf, err := config.LoadHTTPConfig(string(text))
	if err != nil {
		return nil, httpConfigError(errors.New(secrets.WithoutYAMLValues(err)))
	}
	conf.SetDirectory(filepath.Dir(path))
	return conf, nil
}

func httpConfigError(err error) error {
	return fmt.Errorf("HTTP configuration of targets (--coderd-metrics-http-config-file): %w", err)
}

func (s *scraper) close() {
	if s.client != nil {
		s.client.CloseIdleConnections()
	}
}

// scrape returns what the target has now. Families for which skip has a reason are left
// out. An error is a *scrapeError.
func (s *scraper) scrape(ctx context.Context, maxFamilyBytes int, skip func(name, help string) string) (*snapshot, error) {
	if s.client == nil {
		client, err := s.connect()
		if err != nil {
			return nil, &scrapeError{outcomeUnreachable, err}
		}
		s.client = client
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, &scrapeError{outcomeUnreachable, withoutURL(err)}
	}
	req.Header.Set("Accept", accept)
	req.Header.Set("Accept-Encoding", "gzip")
	req.Header.Set("User-Agent", "agentstatsd-bridge")
	req.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", strconv.FormatFloat(s.timeout.Seconds(), 'f', -1, 64))
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, s.failure(ctx, outcomeUnreachable, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, &scrapeError{outcomeStatus, fmt.Errorf("status: want 200, got %d", resp.StatusCode)}
	}
	plain := io.Reader(resp.Body)
	if resp.Header.Get("Content-Encoding") == "gzip" {
		if plain, err = gzip.NewReader(plain); err != nil {
			return nil, s.failure(ctx, outcomeMalformed, fmt.Errorf("decompress: %w", err))
		}
	}
	c := &collector{maxFamilyBytes: maxFamilyBytes, skip: skip}
	body := bufio.NewReader(&limitedReader{plain, s.maxBody, s.maxBody})
	switch format := expfmt.ResponseFormat(resp.Header); format {
	case expfmt.FmtProtoDelim:
		err = c.readDelimited(body)
	case expfmt.FmtText:
		err = c.readText(body)
	default:
		return nil, &scrapeError{outcomeContentType, fmt.Errorf("content type: want protobuf or text, got %.100q", resp.Header.Get("Content-Type"))}
	}
	if err != nil {
		return nil, s.failure(ctx, outcomeMalformed, err)
	}
	return &c.snapshot, nil
}

// failure returns the error of a scrape, with this outcome if no other one is known.
func (s *scraper) failure(ctx context.Context, otherwise outcome, err error) error {
	var tooLarge *tooLargeError
	switch {
	case errors.As(err, &tooLarge):
		return &scrapeError{outcomeTooLarge, err}
	case ctx.Err() != nil:
		return &scrapeError{outcomeTimeout, fmt.Errorf("want an answer within %v, got none", s.timeout)}
	}
	return &scrapeError{otherwise, withoutURL(err)}
}

// withoutURL returns an error without the URL that net/http puts before it, which may
// have a password in its query.
func withoutURL(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

// tooLargeError is why a body is not read to its end.
type tooLargeError struct{ most int64 }

func (e *tooLargeError) Error() string {
	return fmt.Sprintf("body: want at most %d bytes, decompressed (--max-scrape-bytes), got more", e.most)
}

// limitedReader reads at most left bytes. One more is a *tooLargeError.
type limitedReader struct {
	from       io.Reader
	left, most int64
}

func (l *limitedReader) Read(p []byte) (int, error) {
	if int64(len(p)) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.from.Read(p)
	if int64(n) > l.left {
		return 0, &tooLargeError{l.most}
	}
	l.left -= int64(n)
	return n, err
}
