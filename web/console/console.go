// Package console shows people how the service is: as pages of HTML and as JSON. Both are
// made of what AdminService answers, and neither changes anything. The pages need no
// script. They carry what they need, and ask for nothing elsewhere.
package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// answerTimeout bounds how long what is asked for an answer may take.
const answerTimeout = 15 * time.Second

// Options are the knobs of a Console.
type Options struct {
	// ShowMetadata shows the values of agents' metadata; without it they are blank, also in
	// the JSON.
	ShowMetadata bool
}

// Console serves the pages and the JSON. It is an http.Handler of /, /status, all below,
// and of all below /api/v1/status/.
type Console struct {
	api    agentstatsv1.AdminServiceServer
	opts   Options
	log    *slog.Logger
	pages  map[string]*template.Template
	static *static
	mux    *http.ServeMux
}

// New returns a console of what api answers. Nobody is asked for a credential here.
func New(api agentstatsv1.AdminServiceServer, opts Options, log *slog.Logger) (*Console, error) {
	c := &Console{api: api, opts: opts, log: log, mux: http.NewServeMux()}
	var err error
	if c.static, err = newStatic(); err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	if c.pages, err = parsePages(); err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	c.addPages()
	c.addAnswers()
	return c, nil
}

// Mount adds what the console serves to mux. The pages and the JSON are asked by way of
// bounded, which bounds how many requests the console serves. / is served to who
// prefers HTML, and the registry to all others.
func (c *Console) Mount(mux *http.ServeMux, bounded, registry http.Handler) {
	work := asGet(bounded)
	mux.Handle("/{$}", negotiate(work, registry))
	mux.Handle("/status", work)
	mux.Handle("/status/", work)
	mux.Handle("/api/v1/status/", work)
	mux.Handle("GET "+staticPath, c.static)
}

// asGet has next serve HEAD as GET: net/http leaves out the body, and next sees the work
// that both are.
func asGet(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			as := *r
			as.Method = http.MethodGet
			r = &as
		}
		next.ServeHTTP(w, r)
	})
}

// ServeHTTP implements http.Handler.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	// Added, so that what the web configuration says holds beside it.
	h.Add("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "+
		"form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	c.mux.ServeHTTP(w, r.WithContext(ctx))
}

// write writes what was made in memory.
func write(w http.ResponseWriter, contentType string, code int, body *bytes.Buffer) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(body.Len()))
	w.WriteHeader(code)
	_, _ = w.Write(body.Bytes())
}

// failed returns the status of an answer that an error is, and its text. An error without a
// code of gRPC is a fault, whose text is for the log.
func (c *Console) failed(r *http.Request, err error) (code int, text string) {
	code, text = explain(err)
	if code == http.StatusInternalServerError && !errors.Is(r.Context().Err(), context.Canceled) {
		c.log.Error("an answer for the status page failed", "path", r.URL.Path, "error", err)
	}
	return code, text
}
