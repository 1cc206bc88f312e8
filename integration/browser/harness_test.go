// Package browser looks at the status page as a browser does: Debian's Chromium, driven
// by its own protocol. What it looks at is a service that runs, and one that is much
// larger than a test can start: its AdminService is a fake.
package browser

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/bcrypt"

	"github.com/coder/agentstatsd/internal/freeport"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
	"github.com/coder/agentstatsd/web/console"
)

var screenshots = flag.String("screenshots", "", "directory to put pictures of all pages into")

// chromium is the browser of all tests. Each test has a tab.
var chromium context.Context

func TestMain(m *testing.M) {
	flag.Parse()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath("chromium"), chromedp.NoSandbox, chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true),
	)
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	var cancel context.CancelFunc
	chromium, cancel = chromedp.NewContext(allocator)
	if err := chromedp.Do(chromium); err != nil {
		fmt.Fprintln(os.Stderr, "start chromium, which make servers installs:", err)
		os.Exit(1)
	}
	code := m.Run()
	cancel()
	stop()
	os.Exit(code)
}

// tab is one of the browser. A complaint of its pages fails the test.
type tab struct {
	t      *testing.T
	ctx    context.Context
	origin string

	mu sync.Mutex
	// Guarded by mu. Complaints are what pages write to the console, exceptions, and
	// requests that go elsewhere.
	complaints []string
	requests   []string
}

// newTab opens a tab for the pages of an origin.
func newTab(t *testing.T, origin string) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(chromium)
	t.Cleanup(cancel)
	b := &tab{t: t, ctx: ctx, origin: origin}
	require.NoError(t, chromedp.Listen(ctx, b.observe))
	var cancelTimeout context.CancelFunc
	b.ctx, cancelTimeout = context.WithTimeout(ctx, 2*time.Minute)
	t.Cleanup(cancelTimeout)
	call(b, network.Enable, network.EnableParams{})
	call(b, cdplog.Enable, cdp.Empty{})
	call(b, runtime.Enable, cdp.Empty{})
	return b
}

func (b *tab) observe(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	complain := func(format string, args ...any) {
		b.complaints = append(b.complaints, fmt.Sprintf(format, args...))
	}
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		path, ok := strings.CutPrefix(e.Request.URL, b.origin)
		if !ok {
			complain("asks for %s", e.Request.URL)
		}
		b.requests = append(b.requests, path)
	case *cdplog.EventEntryAdded:
		complain("%s: %s %s", e.Entry.Level, e.Entry.Text, e.Entry.URL)
	case *runtime.EventConsoleAPICalled:
		complain("console.%s", e.Type)
	case *runtime.EventExceptionThrown:
		complain("exception: %s", e.ExceptionDetails.Text)
	}
}

// noComplaints fails the test if a page complained.
func (b *tab) noComplaints() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Empty(b.t, b.complaints)
}

// asked returns what was asked for, as paths.
func (b *tab) asked() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.requests)
}

// authorize sends credentials with all requests.
func (b *tab) authorize(user, password string) {
	b.t.Helper()
	credentials := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	call(b, network.SetExtraHTTPHeaders, network.SetExtraHTTPHeadersParams{Headers: network.Headers{"Authorization": "Basic " + credentials}})
}

// call sends a command of the browser's protocol.
func call[P, R any](b *tab, command cdp.Command[P, R], params P) R {
	b.t.Helper()
	result, err := chromedp.Call(b.ctx, command, params)
	require.NoError(b.t, err)
	return result
}

// run runs an action, and returns what it does.
func run[T any](b *tab, action chromedp.Action[T]) T {
	b.t.Helper()
	result, err := chromedp.Run(b.ctx, action)
	require.NoError(b.t, err)
	return result
}

// evaluate returns what an expression, or a promise, is in the page.
func evaluate[T any](b *tab, expression string) T {
	b.t.Helper()
	return run(b, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
}

// open opens the page with a path.
func (b *tab) open(path string) {
	b.t.Helper()
	run(b, chromedp.Navigate(b.origin+path))
}

// before has a script run before those of each page.
func (b *tab) before(script string) {
	b.t.Helper()
	call(b, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: script})
}

// look sets how wide the window is, and which colors its user prefers.
func (b *tab) look(width int64, scheme string) {
	b.t.Helper()
	call(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: 900, DeviceScaleFactor: 1, Mobile: width < 600})
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
}

// picture writes what the whole page looks like.
func (b *tab) picture(name string) {
	b.t.Helper()
	beyond := true
	shot := call(b, page.CaptureScreenshot, page.CaptureScreenshotParams{CaptureBeyondViewport: &beyond})
	require.NoError(b.t, os.WriteFile(filepath.Join(*screenshots, name+".png"), shot.Data, 0o644))
}

// violation is what axe-core finds.
type violation struct {
	ID, Help string
	Nodes    []struct{ HTML, Summary string }
}

// loadAxe loads axe-core into the page.
func (b *tab) loadAxe() {
	b.t.Helper()
	axe, err := os.ReadFile("../../bin/axe/axe.min.js")
	require.NoError(b.t, err, "make servers fetches it")
	run(b, chromedp.Evaluate[chromedp.Void](string(axe)))
}

// violations has axe-core look at the page, or at its colors only.
func (b *tab) violations(colors bool) []violation {
	b.t.Helper()
	options := `{resultTypes: ["violations"]}`
	if colors {
		options = `{resultTypes: ["violations"], runOnly: ["color-contrast", "link-in-text-block"]}`
	}
	return evaluate[[]violation](b, `axe.run(`+options+`).then((r) => r.violations.map((v) => ({
		ID: v.id, Help: v.help, Nodes: v.nodes.map((n) => ({HTML: n.html, Summary: n.failureSummary}))})))`)
}

// demo is a demo that runs, behind a password.
type demo struct{ origin, user, password string }

// startDemo runs one, and waits until its agents are connected.
func startDemo(t *testing.T) demo {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "agentstatsd")
	build := exec.Command("go", "build", "-trimpath", "-o", binary, "./cmd/agentstatsd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is released
	build.Dir = "../.."
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	d := demo{user: "operator", password: "correct horse"}
	hash, err := bcrypt.GenerateFromPassword([]byte(d.password), bcrypt.MinCost)
	require.NoError(t, err)
	web := filepath.Join(dir, "web.yaml")
	require.NoError(t, os.WriteFile(web, fmt.Appendf(nil, "basic_auth_users: {%s: %q}\n", d.user, hash), 0o600))
	address := freeport.Addr()
	d.origin = "http://" + address
	cmd := exec.Command(binary, "demo", "--prometheus-address", address, "--grpc-address", freeport.Addr(), "--web-config-file", web,
		"--max-concurrent-pages", "16", "--max-pages-per-second", "1000")
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		require.NoError(t, cmd.Wait())
	})
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}, time.Minute, 50*time.Millisecond)
	require.Eventually(t, func() bool {
		var answer struct{ Data struct{ Total float64 } }
		return json.NewDecoder(d.get(t, "/api/v1/status/agents?status=connected").Body).Decode(&answer) == nil && answer.Data.Total >= 25
	}, time.Minute, 50*time.Millisecond)
	return d
}

// get asks as a browser does, with credentials if there are any. The answer's body is in
// memory.
func (d demo) get(t *testing.T, path string) *http.Response {
	req, err := http.NewRequest(http.MethodGet, d.origin+path, http.NoBody)
	require.NoError(t, err)
	req.Header.Set("Accept", "text/html")
	if d.user != "" {
		req.SetBasicAuth(d.user, d.password)
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp
}

// serve serves the pages of what api answers, and returns where.
func serve(t *testing.T, api agentstatsv1.AdminServiceServer) string {
	t.Helper()
	pages, err := console.New(api, console.Options{ShowMetadata: true}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	mux := http.NewServeMux()
	registry := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("registry\n")) })
	pages.Mount(mux, pages, registry)
	mux.Handle("/metrics", registry)
	mux.Handle("/-/ready", registry)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}
