// Package coder reads what the bridge needs of a Coder deployment by coderd's REST API.
// It decodes these fields only: scripts, environments and secrets, which the answers
// have too, are passed over.
package coder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/coder/agentstatsd/internal/backoff"
)

const (
	// maxAttempts of one request. The waits between them are bounded by the backoff, or
	// are those that coderd asks for.
	maxAttempts = 5
	// maxRetryAfter bounds the wait that coderd asks for; it asks for a minute.
	maxRetryAfter = 5 * time.Minute
	// maxErrorBytes is read of the body of an error.
	maxErrorBytes = 16 << 10
)

// Client calls coderd's REST API. All methods may be called by any goroutine. They
// block until coderd has answered, or ctx ends. A request that is answered 429 or 5xx,
// or not at all, is made up to five times.
type Client struct {
	base    *url.URL
	opts    Options
	http    *http.Client
	limiter *rate.Limiter
	retries backoff.Backoff
	metrics *metrics
	log     *slog.Logger
	token   tokenFile

	mu sync.Mutex
	// notBefore is when coderd takes requests again. Guarded by mu.
	notBefore time.Time
	page      int // workspaces of a page; guarded by mu
	// Requests that all clients make in a second, and their number. Guarded by mu.
	allowed float64
	sharing int
}

// New makes a Client of the coderd at Options.URL. It calls nothing, and reads nothing.
func New(opts Options, reg prometheus.Registerer, log *slog.Logger) (*Client, error) {
	opts = opts.withDefaults()
	base, err := opts.validate()
	if err != nil {
		return nil, fmt.Errorf("coder options: %w", err)
	}
	c := &Client{
		base: base,
		opts: opts,
		http: &http.Client{
			Transport: opts.Transport,
			// A redirect would carry the token to another host.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		limiter: rate.NewLimiter(rate.Limit(opts.MaxRequestsPerSecond), 1),
		retries: backoff.Backoff{Min: time.Second, Max: 30 * time.Second},
		log:     log,
		token:   tokenFile{path: opts.TokenFile},
		page:    opts.PageSize,
		allowed: opts.MaxRequestsPerSecond,
		sharing: 1,
	}
	c.metrics, err = newMetrics(c.MaxRequestsPerSecond, reg)
	return c, err
}

// Errors that callers branch on. They are wrapped.
var (
	// ErrUnauthorized means that coderd refuses the token (401, 403), or that the file has
	// none. Trying again helps only with another one, or with other rights.
	ErrUnauthorized = errors.New("coderd refuses the API token")
	// ErrNotFound means that there is no such thing, or that the token may not see it.
	ErrNotFound = errors.New("not found, or not visible to the API token")
	// errTooLarge means that the answer is above the limit.
	errTooLarge = errors.New("the answer is too large")
)

// statusError is an answer other than 200.
type statusError struct {
	status     int
	message    string
	retryAfter time.Duration
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("coderd answers %d %s", e.status, http.StatusText(e.status))
	if e.message != "" {
		text += ": " + strconv.Quote(e.message)
	}
	if e.status/100 == 3 {
		text += ": want the access URL itself (--coder-url)"
	}
	return text
}

// Is reports whether the answer is of that kind.
func (e *statusError) Is(target error) bool {
	switch target {
	case ErrUnauthorized:
		return e.status == http.StatusUnauthorized || e.status == http.StatusForbidden
	case ErrNotFound:
		return e.status == http.StatusNotFound
	}
	return false
}

// canRetry reports whether another attempt may succeed.
func canRetry(err error) bool {
	var answer *statusError
	if errors.As(err, &answer) {
		return answer.status == http.StatusTooManyRequests || answer.status >= 500
	}
	return !errors.Is(err, ErrUnauthorized) && !errors.Is(err, errTooLarge) && !errors.As(err, new(*decodeError))
}

// decodeError is an answer that is not what the API has.
type decodeError struct{ err error }

func (e *decodeError) Error() string { return "decode the answer: " + e.err.Error() }
func (e *decodeError) Unwrap() error { return e.err }

// get requests a path, and has decode read the answer. decode is called once for each
// attempt that is answered 200.
func (c *Client) get(ctx context.Context, path string, query url.Values, decode func(*json.Decoder) error) error {
	for attempt := 1; ; attempt++ {
		err := c.attempt(ctx, path, query, decode)
		if err == nil || ctx.Err() != nil || attempt == maxAttempts || !canRetry(err) {
			return err
		}
		wait := c.retries.Delay(attempt)
		var answer *statusError
		if errors.As(err, &answer) && answer.retryAfter > 0 {
			// Whoever was refused together does not come back together.
			wait = answer.retryAfter + wait/4
			c.pause(wait)
		}
		c.log.Debug("a request of coderd is made again", "path", path, "error", err, "wait", wait)
		if !backoff.Sleep(ctx, wait) {
			return err
		}
	}
}

// SetShare has the client take its part of MaxRequestsPerSecond, which it shares with
// others: as many clients as n, this one among them.
func (c *Client) SetShare(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sharing = n
	c.limiter.SetLimit(rate.Limit(c.allowed / float64(n)))
}

// MaxRequestsPerSecond is that of Options, or of SetMaxRequestsPerSecond.
func (c *Client) MaxRequestsPerSecond() float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.allowed
}

// SetMaxRequestsPerSecond changes Options.MaxRequestsPerSecond. After an error nothing has
// changed.
func (c *Client) SetMaxRequestsPerSecond(perSecond float64) error {
	opts := c.opts
	opts.MaxRequestsPerSecond = perSecond
	opts = opts.withDefaults()
	if _, err := opts.validate(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.allowed = opts.MaxRequestsPerSecond
	c.limiter.SetLimit(rate.Limit(c.allowed / float64(c.sharing)))
	return nil
}

// pause has all requests wait, too.
func (c *Client) pause(wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at := time.Now().Add(wait); at.After(c.notBefore) {
		c.notBefore = at
	}
}

// waitTurn waits until a request may be made.
func (c *Client) waitTurn(ctx context.Context) error {
	for {
		c.mu.Lock()
		wait := time.Until(c.notBefore)
		c.mu.Unlock()
		if wait <= 0 {
			break
		}
		if !backoff.Sleep(ctx, wait) {
			return ctx.Err()
		}
	}
	return c.limiter.Wait(ctx)
}

func (c *Client) attempt(ctx context.Context, path string, query url.Values, decode func(*json.Decoder) error) error {
	if err := c.waitTurn(ctx); err != nil {
		return err
	}
	token, err := c.token.read()
	if err != nil {
		c.metrics.requests.WithLabelValues(statusNoToken).Inc()
		return fmt.Errorf("%w: %w", ErrUnauthorized, err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.Timeout)
	defer cancel()
	target := c.base.JoinPath(path)
	target.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Coder-Session-Token", token)
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "agentstatsd-bridge")
	resp, err := c.http.Do(req)
	if err != nil {
		c.metrics.requests.WithLabelValues(statusNone).Inc()
		return withoutURL(err)
	}
	defer func() { _ = resp.Body.Close() }()
	c.metrics.requests.WithLabelValues(strconv.Itoa(resp.StatusCode)).Inc()
	if resp.StatusCode != http.StatusOK {
		return answerError(resp, token)
	}
	body := &limitedReader{from: resp.Body, left: c.opts.MaxBytes}
	err = decode(json.NewDecoder(body))
	switch {
	case err == nil:
		// The connection is used again only if the body is read.
		_, err = io.Copy(io.Discard, body)
		return err
	case body.err != nil:
		return body.err // rather than what the decoder makes of it
	}
	return err
}

// withoutURL returns the error below one of net/http, which quotes the URL.
func withoutURL(err error) error {
	var at *url.Error
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}

func answerError(resp *http.Response, token string) *statusError {
	e := &statusError{status: resp.StatusCode}
	var body struct {
		Message string `json:"message"`
	}
	if json.NewDecoder(io.LimitReader(resp.Body, maxErrorBytes)).Decode(&body) == nil {
		e.message = strings.ReplaceAll(body.Message, token, "...")
		e.message = e.message[:min(len(e.message), 200)]
	}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds > 0 {
		e.retryAfter = min(time.Duration(min(seconds, 1<<20))*time.Second, maxRetryAfter)
	}
	return e
}

// limitedReader fails beyond a number of bytes. It remembers why reading ended.
type limitedReader struct {
	from io.Reader
	left int64
	err  error // of from, but io.EOF; or errTooLarge
}

func (r *limitedReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if int64(len(p)) > r.left+1 {
		p = p[:r.left+1]
	}
	n, err := r.from.Read(p)
	if r.left -= int64(n); r.left < 0 {
		r.err = errTooLarge
		return 0, r.err
	}
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}
