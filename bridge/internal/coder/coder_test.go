package coder

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/codertest"
)

const token = "abcdefghij-0123456789abcdefghijkl"

var day = time.Date(1999, 12, 31, 12, 0, 0, 0, time.UTC)

// setup is a client of a stand-in, with what it logged.
type setup struct {
	*Client
	rest *codertest.REST
	log  bytes.Buffer
	path string
}

func newSetup(t *testing.T, rest *codertest.REST, opts Options) *setup {
	s := &setup{rest: rest, path: codertest.TokenFile(t, token)}
	rest.SetToken(token, codertest.Token{ExpiresAt: day.Add(48 * time.Hour)})
	opts.URL, opts.TokenFile, opts.Transport = "http://coder.test/", s.path, rest.Serve(t)
	var err error
	s.Client, err = New(opts, prometheus.NewPedanticRegistry(), slog.New(slog.NewTextHandler(&s.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	require.NoError(t, err)
	return s
}

func (s *setup) requests(status string) int {
	return int(testutil.ToFloat64(s.metrics.requests.WithLabelValues(status)))
}

// started is workspace n, started, with an agent.
func started(n int) *codertest.Workspace {
	id := func(kind byte) uuid.UUID { return uuid.UUID{1, kind, 14: byte(n >> 8), 15: byte(n)} }
	return &codertest.Workspace{
		ID: id('w'), Name: fmt.Sprintf("ws%03d", n), Owner: "ada",
		Build: codertest.Build{
			ID: id('b'), CreatedAt: day, Transition: "start", Job: "succeeded",
			Agents: []codertest.WorkspaceAgent{{ID: id('a'), Name: "main", CreatedAt: day, Apps: []codertest.App{{ID: id('p'), Slug: "code", Health: "healthy"}}}},
		},
	}
}

func (s *setup) list(t *testing.T) map[uuid.UUID]*Workspace {
	t.Helper()
	list := make(map[uuid.UUID]*Workspace)
	pages, err := s.Workspaces(t.Context(), func(w *Workspace, ok bool) {
		require.True(t, ok)
		list[w.ID] = w
	})
	require.NoError(t, err)
	require.Zero(t, pages.Unreadable)
	return list
}

func TestWorkspaces(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		rest := codertest.NewREST()
		parent := started(1).Build.Agents[0].ID
		for n := range 250 {
			w := started(n)
			w.IsPrebuild = n == 7
			if n == 1 {
				w.Build.Agents[0].Lifecycle, w.Build.Agents[0].ReadyAt = "ready", day.Add(time.Minute)
				w.Build.Agents[0].Latencies = map[string]codertest.Latency{"Frankfurt": {Preferred: true, MS: 12.5}}
				w.Build.Agents = append(w.Build.Agents, codertest.WorkspaceAgent{ID: uuid.New(), ParentID: parent, Name: "dev", CreatedAt: day, Status: "disconnected"})
			}
			rest.Put(w)
		}
		s := newSetup(t, rest, Options{})
		begin := time.Now()
		list := s.list(t)
		require.Len(t, list, 250)
		require.Equal(t, 3, rest.Requests("list"))
		require.Equal(t, 400*time.Millisecond, time.Since(begin), "5 requests a second")
		w := list[started(1).ID]
		require.Equal(t, "ws001", w.Name)
		require.Equal(t, "ada", w.OwnerName)
		require.Equal(t, "coder", w.OrganizationName)
		require.Equal(t, codertest.TemplateID, w.TemplateID)
		require.Equal(t, "v7", w.Build.TemplateVersionName)
		require.False(t, w.IsPrebuild)
		require.True(t, list[started(7).ID].IsPrebuild)
		agents := w.CurrentAgents()
		require.Len(t, agents, 2)
		require.Equal(t, "ready", agents[0].Lifecycle)
		require.Equal(t, day.Add(time.Minute), agents[0].ReadyAt)
		require.True(t, agents[0].StartedAt.IsZero())
		require.Equal(t, 2*time.Minute, agents[0].ConnectionTimeout)
		require.Equal(t, map[string]Latency{"Frankfurt": {true, 12500 * time.Microsecond}}, agents[0].Latencies)
		require.Equal(t, "code", agents[0].Apps[0].Slug)
		require.Equal(t, parent, agents[1].ParentID)
		require.Equal(t, "disconnected", agents[1].Status)
		require.NotContains(t, fmt.Sprintf("%+v", list), codertest.Secret)
	})
}

func TestOlderAndNewerCoders(t *testing.T) {
	for name, rest := range map[string]*codertest.REST{"older": codertest.NewREST(), "newer": codertest.NewREST()} {
		t.Run(name, func(t *testing.T) {
			rest.Older, rest.Newer = name == "older", name == "newer"
			prebuilt := started(2)
			prebuilt.Owner = "prebuilds"
			rest.Put(started(1), prebuilt)
			s := newSetup(t, rest, Options{})
			list := s.list(t)
			require.Len(t, list, 2)
			require.Len(t, list[started(1).ID].CurrentAgents(), 1)
			require.Equal(t, uuid.Nil, list[started(1).ID].CurrentAgents()[0].ParentID)
			require.False(t, list[started(1).ID].IsPrebuild)
			require.True(t, list[started(2).ID].IsPrebuild)
		})
	}
}

// What is not as the API has it costs that workspace only.
func TestUnreadableWorkspaces(t *testing.T) {
	body := `{"next":{"a":[1,{"b":null}]},"count":4,"workspaces":[
		{"id":"%s","name":7,"latest_build":{"resources":"none"}},
		{"id":"no id","name":"x"},
		{"id":"%s","name":"good","latest_build":{"created_at":"yesterday","resources":null,"job":null}},
		null]}`
	rest := codertest.NewREST()
	rest.OnRequest = func(*http.Request) *codertest.Answer {
		return &codertest.Answer{Status: 200, Body: fmt.Sprintf(body, started(1).ID, started(2).ID)}
	}
	s := newSetup(t, rest, Options{})
	got := map[uuid.UUID]bool{}
	pages, err := s.Workspaces(t.Context(), func(w *Workspace, ok bool) { got[w.ID] = ok })
	require.NoError(t, err)
	require.Equal(t, map[uuid.UUID]bool{started(1).ID: false, started(2).ID: true}, got)
	require.Equal(t, Pages{Count: 4, Unreadable: 2}, pages)
}

func TestWorkspace(t *testing.T) {
	rest := codertest.NewREST()
	rest.Put(started(1), started(2))
	rest.Delete(started(2).ID)
	s := newSetup(t, rest, Options{MaxRequestsPerSecond: 1000})
	w, err := s.Workspace(t.Context(), started(1).ID)
	require.NoError(t, err)
	require.False(t, w.IsDeleted())
	require.True(t, w.Build.IsDone())
	w, err = s.Workspace(t.Context(), started(2).ID)
	require.NoError(t, err)
	require.True(t, w.IsDeleted())
	require.Empty(t, w.CurrentAgents())
	_, err = s.Workspace(t.Context(), started(3).ID)
	require.ErrorIs(t, err, ErrNotFound)
	require.NotErrorIs(t, err, ErrUnauthorized)

	rest.SetToken(token, codertest.Token{Role: codertest.Member})
	_, err = s.Workspace(t.Context(), started(1).ID)
	require.ErrorIs(t, err, ErrNotFound)
	require.Empty(t, s.list(t))
	for _, role := range []codertest.Role{codertest.Expired, codertest.Forbidden} {
		rest.SetToken(token, codertest.Token{Role: role})
		before := rest.Requests("workspace")
		_, err = s.Workspace(t.Context(), started(1).ID)
		require.ErrorIs(t, err, ErrUnauthorized)
		require.NotErrorIs(t, err, ErrNotFound)
		require.Equal(t, before+1, rest.Requests("workspace"), "trying again does not help")
	}
	require.Equal(t, 1, s.requests("401"))
	require.Equal(t, 1, s.requests("403"))

	rest.OnRequest = func(*http.Request) *codertest.Answer { return &codertest.Answer{Status: http.StatusGone} }
	w, err = s.Workspace(t.Context(), started(2).ID)
	require.NoError(t, err)
	require.True(t, w.IsDeleted())
}

func TestRetries(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		rest := codertest.NewREST()
		rest.Put(started(1))
		answers := make(chan *codertest.Answer, 10)
		rest.OnRequest = func(*http.Request) *codertest.Answer {
			select {
			case a := <-answers:
				return a
			default:
				return nil
			}
		}
		s := newSetup(t, rest, Options{})
		answers <- &codertest.Answer{Status: 503}
		answers <- &codertest.Answer{Status: 200, Body: `{"workspaces":[{"id":"`} // cut off
		begin := time.Now()
		_, err := s.Workspaces(t.Context(), func(*Workspace, bool) {})
		require.Error(t, err, "JSON that is none is not asked for again")
		require.Less(t, time.Since(begin), 2*time.Second)
		require.Equal(t, 1, s.requests("503"))

		answers <- &codertest.Answer{Status: 429, RetryAfter: 60}
		begin = time.Now()
		done := make(chan error)
		go func() {
			_, err := s.Workspace(context.Background(), started(1).ID)
			done <- err
		}()
		time.Sleep(time.Second)
		_, err = s.Workspace(t.Context(), started(1).ID)
		require.NoError(t, err)
		require.GreaterOrEqual(t, time.Since(begin), time.Minute, "all requests wait")
		require.NoError(t, <-done)
		require.Equal(t, 1, s.requests("429"))

		for range maxAttempts {
			answers <- &codertest.Answer{Status: 500, Body: `{"message":"` + token + ` is wrong"}`}
		}
		_, err = s.Workspace(t.Context(), started(1).ID)
		require.ErrorContains(t, err, `coderd answers 500 Internal Server Error: "... is wrong"`)
		require.Empty(t, answers)
		require.NotContains(t, s.log.String(), token)
		require.NotContains(t, s.log.String(), codertest.Secret)
	})
}

// A redirect would take the token to another host.
func TestRedirectIsNotFollowed(t *testing.T) {
	rest := codertest.NewREST()
	rest.OnRequest = func(*http.Request) *codertest.Answer { return &codertest.Answer{Status: 307, Location: "/elsewhere"} }
	s := newSetup(t, rest, Options{})
	_, err := s.Workspace(t.Context(), started(1).ID)
	require.ErrorContains(t, err, "want the access URL itself (--coder-url)")
	require.Equal(t, 1, rest.Requests("workspace"))
	require.Zero(t, rest.Requests("other"))
}

func TestLimits(t *testing.T) {
	rest := codertest.NewREST()
	for n := range 40 {
		rest.Put(started(n))
	}
	s := newSetup(t, rest, Options{MaxBytes: 8 << 10, MaxRequestsPerSecond: 1000})
	require.Len(t, s.list(t), 40, "in smaller pages")
	require.Less(t, s.pageSize(), 10)
	s = newSetup(t, rest, Options{MaxBytes: 100})
	_, err := s.Workspace(t.Context(), started(1).ID)
	require.ErrorIs(t, err, errTooLarge)
	require.Equal(t, 1, rest.Requests("workspace"))

	bubble.Test(t, func(t *testing.T) {
		rest := codertest.NewREST()
		hang := make(chan struct{})
		rest.OnRequest = func(*http.Request) *codertest.Answer {
			<-hang
			return nil
		}
		s := newSetup(t, rest, Options{Timeout: 10 * time.Second})
		defer close(hang)
		begin := time.Now()
		_, err := s.Workspace(t.Context(), started(1).ID)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Greater(t, time.Since(begin), 50*time.Second, "five times")
		require.Less(t, time.Since(begin), 70*time.Second)
		require.Equal(t, maxAttempts, s.requests(statusNone))
	})
}

func TestTokenFile(t *testing.T) {
	rest := codertest.NewREST()
	rest.Put(started(1))
	s := newSetup(t, rest, Options{MaxRequestsPerSecond: 1000})
	version := s.TokenVersion()
	require.Equal(t, version, s.TokenVersion())
	expiry, err := s.TokenExpiry(t.Context())
	require.NoError(t, err)
	require.Equal(t, day.Add(48*time.Hour), expiry)
	require.Equal(t, float64(expiry.Unix()), testutil.ToFloat64(s.metrics.expiry))

	const other = "another0000-0123456789abcdefghijkl"
	require.NoError(t, os.WriteFile(s.path, []byte(other), 0o600))
	require.NotEqual(t, version, s.TokenVersion())
	_, err = s.Workspace(t.Context(), started(1).ID)
	require.ErrorIs(t, err, ErrUnauthorized)
	rest.SetToken(other, codertest.Token{HidesExpiry: true})
	_, err = s.Workspace(t.Context(), started(1).ID)
	require.NoError(t, err)
	_, err = s.TokenExpiry(t.Context())
	require.ErrorIs(t, err, ErrNotFound)

	require.NoError(t, os.Remove(s.path))
	_, err = s.Workspace(t.Context(), started(1).ID)
	require.ErrorIs(t, err, ErrUnauthorized)
	require.Equal(t, 1, s.requests(statusNoToken))
	require.Zero(t, s.TokenVersion())
	require.NoError(t, os.WriteFile(s.path, []byte("a token without an id"), 0o600))
	expiry, err = s.TokenExpiry(t.Context())
	require.NoError(t, err)
	require.Zero(t, expiry)
}

// A role of one organization is none of all.
func TestSeesAll(t *testing.T) {
	rest := codertest.NewREST()
	s := newSetup(t, rest, Options{MaxRequestsPerSecond: 1000})
	for _, is := range []codertest.Token{{}, {Role: codertest.Member}, {Owner: "ada"}} {
		rest.SetToken(token, is)
		sees, err := s.SeesAll(t.Context())
		require.NoError(t, err)
		require.Equal(t, is == codertest.Token{}, sees)
	}
	rest.SetToken(token, codertest.Token{Role: codertest.Forbidden})
	_, err := s.SeesAll(t.Context())
	require.ErrorIs(t, err, ErrUnauthorized)
}

// A coderd with TLS is verified, by certificates of one's own.
func TestTLS(t *testing.T) {
	rest := codertest.NewREST()
	rest.SetToken(token, codertest.Token{})
	rest.Put(started(1))
	server := httptest.NewUnstartedServer(rest)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	for _, conf := range []*tls.Config{nil, {RootCAs: roots}} {
		transport := Options{TLS: conf}.withDefaults().Transport.(*http.Transport)
		defer transport.CloseIdleConnections()
		c, err := New(Options{URL: server.URL, TokenFile: codertest.TokenFile(t, token), Transport: transport}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		err = c.attempt(t.Context(), "api/v2/workspaces", nil, func(*json.Decoder) error { return nil })
		if conf == nil {
			require.ErrorContains(t, err, "certificate")
		} else {
			require.NoError(t, err)
		}
	}
}

func TestOptions(t *testing.T) {
	for field, opts := range map[string]Options{
		"URL: want http":            {URL: "ftp://coder.test", TokenFile: "x"},
		"URL: want it without user": {URL: "https://ada:secret@coder.test", TokenFile: "x"},
		"URL: want one":             {URL: "https://coder.test/%zz", TokenFile: "x"},
		"token file":                {URL: "https://coder.test"},
		"max requests per second":   {URL: "https://coder.test", TokenFile: "x", MaxRequestsPerSecond: -1},
		"max bytes":                 {URL: "https://coder.test", TokenFile: "x", MaxBytes: -1},
		"timeout":                   {URL: "https://coder.test", TokenFile: "x", Timeout: -1},
		"page size":                 {URL: "https://coder.test", TokenFile: "x", PageSize: 1001},
	} {
		_, err := New(opts, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, "coder options: "+field)
		require.False(t, strings.Contains(err.Error(), "secret"))
	}
}

// A changed rate is shared as the one before.
func TestSetMaxRequestsPerSecond(t *testing.T) {
	s := newSetup(t, codertest.NewREST(), Options{MaxRequestsPerSecond: 6})
	s.SetShare(2)
	require.Equal(t, rate.Limit(3), s.limiter.Limit())
	require.NoError(t, s.SetMaxRequestsPerSecond(10))
	require.Equal(t, rate.Limit(5), s.limiter.Limit())
	s.SetShare(4)
	require.Equal(t, rate.Limit(2.5), s.limiter.Limit())
	require.Error(t, s.SetMaxRequestsPerSecond(-1))
	require.Equal(t, 10.0, s.MaxRequestsPerSecond())
}
