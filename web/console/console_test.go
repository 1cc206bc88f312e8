package console

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/html"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// allPages are all pages, with all that they can show.
var allPages = []string{
	"/status", "/status/agents", "/status/agents?query=a&status=connected&page_size=50", "/status/agents/x", "/status/cardinality",
	"/status/cardinality?by=owner&family=f", "/status/cardinality?cost=1", "/status/cardinality?cost=1&what_if_labels=username&what_if_labels=agent_name",
	"/status/refusals", "/status/explain", "/status/explain?selector=x", "/status/durability", "/status/pushes", "/status/config", "/status/config?show=changed", "/status/replicas", "/status/none",
}

// walk calls visit with all elements.
func walk(n *html.Node, visit func(n *html.Node)) {
	if n.Type == html.ElementNode {
		visit(n)
	}
	for child := n.FirstChild; child != nil; child = child.NextSibling {
		walk(child, visit)
	}
}

func attribute(n *html.Node, name string) (value string, ok bool) {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val, true
		}
	}
	return "", false
}

// Whatever agents, users and templates are called, a page has no element, script, style or
// address of theirs.
func TestNamesAreEscaped(t *testing.T) {
	h := consoleOf(t, newFake(), Options{ShowMetadata: true})
	static := regexp.MustCompile(`^(\.\./|\./)*status/static/[a-z]+\.(js|css|svg)\?v=[0-9a-f]{12}$`)
	for _, target := range allPages {
		w := get(t, h, http.MethodGet, target)
		require.Less(t, w.Code, 500, target)
		doc, err := html.Parse(w.Body)
		require.NoError(t, err)
		scripts, ids := 0, make(map[string]bool)
		walk(doc, func(n *html.Node) {
			require.NotContains(t, []string{"b", "style", "iframe", "object", "base"}, n.Data, target)
			if id, ok := attribute(n, "id"); ok {
				require.False(t, ids[id], "%s: id %s is there twice", target, id)
				ids[id] = true
			}
			for _, a := range n.Attr {
				require.False(t, strings.HasPrefix(a.Key, "on") || a.Key == "style", "%s: %s", target, a.Key)
			}
			src, isSource := attribute(n, "src")
			href, isLink := attribute(n, "href")
			action, isForm := attribute(n, "action")
			switch {
			case n.Data == "script":
				scripts++
				require.Nil(t, n.FirstChild)
				require.Regexp(t, static, src)
			case n.Data == "link":
				require.Regexp(t, static, href)
			case isSource:
				require.Fail(t, "something is loaded", "%s: %s", target, src)
			case isForm:
				require.Regexp(t, `^(\.\./|\./)status/`, action)
			case isLink && href != "#main" && href != "http://10.0.0.2:2112/" && href != "#ZgotmplZ":
				require.Regexp(t, `^(\.\./|\./)+(status|api/v1/status|metrics|-/ready)`, href, target)
				require.NotContains(t, href, "//evil")
			}
		})
		require.Equal(t, 1, scripts, target)
	}
}

// What pages say is there, as words and numbers for people.
func TestPagesShow(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		h := consoleOf(t, newFake(), Options{})
		for target, texts := range map[string][]string{
			"/status": {
				"Ready, with faults", "v1.2.3", "started 1 d 2 h ago", "one of 3 replicas", "batcher: metadata is not written", "is gone: it last said 2 min ago how it is",
				"two: it drains", "series: 950,000 of 1,000,000 are used", "the certificate of the listener grpc ends in 2 d", "the authority of clients' certificates of the listener grpc has expired", "7,005of 10,000, 10 relayed",
				"512 MiBof 1 GiB", "0.25cores used", "oldest 1.5 s", "too many series 1,234,567", "Pending 3", "Resident 0 B",
			},
			"/status/agents":              {"Agents 1 to 2 of 2", "connected", "relayed", "42", "502", "3 s ago", "a/b.dev", "timeout"},
			"/status/agents/x":            {"00ff", "replaced", "unhealthy", "series: want at most 1000, got 1500", "values only with --web-show-metadata", "never sent", "pending", "1,234,568"},
			"/status/cardinality":         {"10 series · 3 descriptors · 2 agents", "Series by template: 2 of 2", "90.0 %", "(none)"},
			"/status/cardinality?cost=1":  {"grouped by username", "2 KiB", "2.1 KiB", "11"},
			"/status/refusals":            {"too many agent series", "6a1c9e5e-0000-4000-8000-00000000000f", "Refused items by owner", "others 3", "unknown 1"},
			"/status/durability":          {"one 100 10 50 20 5 15 yes", "two 3 s ago 3 0 0 0 0 0 no, by 3", "It did not say.", "Flush –", "20 ms"},
			"/status/explain":             {"A selector is a name"},
			"/status/explain?selector=x":  {"Conclusion It is hidden by", "Hidden by newer", "it expired", "its page", "its page there", "Served now: 1 of 30"},
			"/status/pushes":              {"fresh, passed through", "expired", "8 s ago"},
			"/status/config":              {"1 of 2 options are set", "--prometheus-address", "restart", "--max-series"},
			"/status/config?show=changed": {"Show all", "--prometheus-address"},
			"/status/replicas":            {"ready, leads", "draining", "gone", "512 MiB of 1 GiB", "push bytes – 64 MiB"},
		} {
			w := get(t, h, http.MethodGet, target)
			require.Equal(t, http.StatusOK, w.Code, target)
			text := textOf(t, w.Body.String())
			for _, want := range texts {
				assert.Contains(t, text, want, target)
			}
		}
		require.NotContains(t, get(t, h, http.MethodGet, "/status/config?show=changed").Body.String(), "max-series")
		require.NotContains(t, get(t, h, http.MethodGet, "/status/explain").Body.String(), "api/v1", "nothing is asked yet")
	})
}

// textOf returns the words of a page, with one space between them.
func textOf(t *testing.T, page string) string {
	t.Helper()
	doc, err := html.Parse(strings.NewReader(page))
	require.NoError(t, err)
	var b strings.Builder
	var visit func(n *html.Node)
	visit = func(n *html.Node) {
		if n.Type == html.TextNode {
			b.WriteString(n.Data)
		}
		for child := n.FirstChild; child != nil; child = child.NextSibling {
			visit(child)
		}
		if n.Type == html.ElementNode && (n.Data == "td" || n.Data == "th" || n.Data == "dd" || n.Data == "dt") {
			b.WriteString(" ")
		}
	}
	visit(doc)
	return strings.Join(strings.Fields(b.String()), " ")
}

// A service of which nothing is known yet has pages, too.
func TestPagesWithoutAnything(t *testing.T) {
	h := consoleOf(t, &fake{
		status: &agentstatsv1.GetStatusResponse{}, config: &agentstatsv1.GetConfigResponse{}, history: &agentstatsv1.GetHistoryResponse{},
		agents: []*agentstatsv1.AgentSummary{}, agent: &agentstatsv1.DescribeAgentResponse{}, refusals: &agentstatsv1.ListRefusalsResponse{},
		cardinality: &agentstatsv1.GetCardinalityResponse{}, cost: &agentstatsv1.GetCostResponse{}, pushes: &agentstatsv1.ListPushesResponse{}, explanation: &agentstatsv1.ExplainSeriesResponse{},
	}, Options{ShowMetadata: true})
	for _, target := range allPages[:len(allPages)-1] {
		require.Equal(t, http.StatusOK, get(t, h, http.MethodGet, target).Code, target)
	}
}

// Values of metadata are nowhere unless they are to be shown.
func TestMetadataValuesAreBlank(t *testing.T) {
	for show, want := range map[bool]bool{false: false, true: true} {
		h := consoleOf(t, newFake(), Options{ShowMetadata: show})
		for _, target := range []string{"/status/agents/x", "/api/v1/status/agents/x"} {
			body := get(t, h, http.MethodGet, target).Body.String()
			require.Contains(t, body, "k3", target)
			for _, secret := range []string{"hunter2", "hunter3"} {
				require.Equal(t, want, strings.Contains(body, secret), "%s, shown: %v", target, show)
			}
		}
	}
}

// What the database does not say is not taken for nothing.
func TestMetadataThatIsNotKnown(t *testing.T) {
	f := newFake()
	f.agent.Metadata, f.agent.MetadataProblem = nil, "the database cannot be used now; "+hostile
	text := textOf(t, get(t, consoleOf(t, f, Options{}), http.MethodGet, "/status/agents/x").Body.String())
	require.Contains(t, text, "It is not known.")
	require.Contains(t, text, "What is stored is not known: the database cannot be used now")
	require.NotContains(t, text, "It has none. What")
}

// The history is a part of a page. Without it the page is there, and says so.
func TestPageWithoutHistory(t *testing.T) {
	f := newFake()
	f.history = nil
	w := get(t, consoleOf(t, f, Options{}), http.MethodGet, "/status")
	require.Equal(t, http.StatusOK, w.Code)
	require.Contains(t, w.Body.String(), "The history is not available: this program does not answer that")
}

// Errors have the status of HTTP that says what they are, as pages and as JSON. What is not
// for who asks is not in them.
func TestErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
		text string
	}{
		{status.Error(codes.InvalidArgument, "limit: want 0 to 1000, got 2000"), 400, "limit: want 0 to 1000, got 2000"},
		{status.Error(codes.NotFound, "no agent is called x"), 404, "no agent is called x"},
		{status.Error(codes.FailedPrecondition, "several are"), 409, "several are"},
		{status.Error(codes.ResourceExhausted, "one at a time"), 429, "one at a time"},
		{status.Error(codes.Unimplemented, "method GetStatus not implemented"), 501, "this program does not answer that"},
		{status.Error(codes.Unavailable, "the database is away"), 503, "the database is away"},
		{status.Error(codes.DeadlineExceeded, "too late"), 504, "too late"},
		{fmt.Errorf("count: %w", context.DeadlineExceeded), 504, "the answer took too long"},
		{fmt.Errorf("count: %w", context.Canceled), 503, "the request was given up"},
		{status.Error(codes.Internal, "secret"), 500, "the service could not answer: its log says why"},
		{errors.New("secret"), 500, "the service could not answer: its log says why"},
	} {
		f := newFake()
		f.err = c.err
		h := consoleOf(t, f, Options{})
		for _, target := range []string{"/status", "/status/agents", "/status/agents/x", "/status/cardinality", "/status/refusals", "/status/explain?selector=x", "/status/durability", "/status/pushes", "/status/config", "/status/replicas"} {
			w := get(t, h, http.MethodGet, target)
			require.Equal(t, c.code, w.Code, target)
			require.Equal(t, "text/html; charset=utf-8", w.Header().Get("Content-Type"))
			require.Contains(t, w.Body.String(), c.text, target)
		}
		for _, target := range []string{"build", "replicas", "config", "history", "agents", "agents/x", "cardinality", "cost", "refusals", "pushes", "explain"} {
			w := get(t, h, http.MethodGet, "/api/v1/status/"+target)
			require.Equal(t, c.code, w.Code, target)
			require.JSONEq(t, `{"status":"error","error":"`+c.text+`"}`, w.Body.String(), target)
		}
	}
}

// Only GET and HEAD are answered. HEAD has the status and the length of GET. A page says
// how old things are, so the clock stands still.
func TestMethods(t *testing.T) { bubble.Test(t, testMethods) }

func testMethods(t *testing.T) {
	h := consoleOf(t, newFake(), Options{})
	for _, target := range []string{"/status", "/status/agents", "/api/v1/status/agents", "/status/static/style.css"} {
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions} {
			require.Equal(t, http.StatusMethodNotAllowed, get(t, h, method, target).Code, target)
		}
		whole, head := get(t, h, http.MethodGet, target), get(t, h, http.MethodHead, target)
		require.Equal(t, whole.Code, head.Code, target)
		require.Equal(t, whole.Header().Get("Content-Length"), head.Header().Get("Content-Length"), target)
	}
	require.Equal(t, http.StatusNotFound, get(t, h, http.MethodHead, "/status/none").Code)
	require.Equal(t, http.StatusNotFound, get(t, h, http.MethodGet, "/status/static/none.css").Code)
}

// All answers say what a browser may do with them.
func TestHeaders(t *testing.T) {
	h := consoleOf(t, newFake(), Options{})
	for _, target := range []string{"/status", "/status/none", "/api/v1/status/agents", "/api/v1/status/none"} {
		header := get(t, h, http.MethodGet, target).Header()
		require.Equal(t, "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
			header.Get("Content-Security-Policy"))
		require.Equal(t, "nosniff", header.Get("X-Content-Type-Options"))
		require.Equal(t, "same-origin", header.Get("Referrer-Policy"))
		require.Equal(t, "no-store", header.Get("Cache-Control"))
	}
	page := get(t, h, http.MethodGet, "/status").Body.String()
	for _, file := range regexp.MustCompile(`"\./(status/static/[^"]+)"`).FindAllStringSubmatch(page, -1) {
		w := get(t, h, http.MethodGet, "/"+file[1])
		require.Equal(t, http.StatusOK, w.Code)
		require.Contains(t, w.Header().Get("Cache-Control"), "immutable", file[1])
		require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
		require.NotEmpty(t, w.Header().Get("Content-Type"))
	}
	require.Equal(t, "no-cache", get(t, h, http.MethodGet, "/status/static/style.css?v=old").Header().Get("Cache-Control"))
}

// All but what is served as it is asked by way of what bounds the work, HEAD as GET.
func TestMountIsBounded(t *testing.T) {
	c, err := New(newFake(), Options{}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	mux := http.NewServeMux()
	c.Mount(mux, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, r.Method, http.StatusServiceUnavailable)
	}), http.NotFoundHandler())
	for _, target := range append([]string{"/", "/api/v1/status/agents", "/api/v1/status/none"}, allPages...) {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			w := get(t, mux, method, target, "Accept", browserAccept)
			require.Equal(t, http.StatusServiceUnavailable, w.Code, target)
			require.Equal(t, "GET\n", w.Body.String())
		}
	}
	require.Equal(t, http.StatusOK, get(t, mux, http.MethodGet, "/status/static/style.css").Code)
}

// What the listener's own configuration says of content holds, too.
func TestContentSecurityPolicyIsAdded(t *testing.T) {
	c, err := New(newFake(), Options{}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	w := httptest.NewRecorder()
	w.Header().Set("Content-Security-Policy", "sandbox")
	c.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/status", http.NoBody))
	require.Len(t, w.Header()["Content-Security-Policy"], 2)
}

// Links and forms of a page lead to / from wherever it is served, an agent with slashes in
// its name, too.
func TestRoot(t *testing.T) {
	f := newFake()
	h := consoleOf(t, f, Options{})
	for target, root := range map[string]string{
		"/status": "./", "/status/agents": "../", "/status/agents/6a1c9e5e-0000-4000-8000-000000000001": "../../",
		"/status/agents/o/a%2Fb.dev": "../../../", "/status/agents/o%2Fa%2Fb.dev": "../../",
	} {
		body := get(t, h, http.MethodGet, target).Body.String()
		require.Contains(t, body, `href="`+root+`status"`, target)
		require.Contains(t, body, `href="`+root+`status/static/style.css`, target)
	}
	for _, target := range []string{"/status/agents/o/a%2Fb.dev", "/status/agents/o%2Fa%2Fb.dev", "/status/agents/o/a/b.dev", "/api/v1/status/agents/o%2Fa%2Fb.dev"} {
		f.asked = nil
		require.Equal(t, http.StatusOK, get(t, h, http.MethodGet, target).Code)
		require.Equal(t, "o/a/b.dev", f.asked[0].(*agentstatsv1.DescribeAgentRequest).GetAgent(), target)
	}
}

// Ten thousand agents are paged through, each is there once.
func TestPaging(t *testing.T) {
	f := newFake()
	f.agents = manyAgents(10_000)
	h := consoleOf(t, f, Options{})
	seen := make(map[string]bool)
	link := regexp.MustCompile(`rel="next" href="\.\./([^"]+)"`)
	target := "/status/agents?page_size=1000&status=connected"
	for page := 1; ; page++ {
		w := get(t, h, http.MethodGet, target)
		require.Equal(t, http.StatusOK, w.Code)
		body := w.Body.String()
		for _, after := range strings.Split(body, `href="../status/agents/`)[1:] {
			id, _, _ := strings.Cut(after, `"`)
			if seen[id] {
				t.Fatal(id, "is there twice")
			}
			seen[id] = true
		}
		next := link.FindStringSubmatch(body)
		if next == nil {
			require.Equal(t, 10, page)
			require.Contains(t, body, "Agents 9,001 to 10,000 of 10,000")
			break
		}
		target = "/" + html.UnescapeString(next[1])
		require.Contains(t, target, "status=connected")
	}
	require.Len(t, seen, 10_000)
}

// The Content-Type of static files does not depend on the machine.
func TestStaticTypes(t *testing.T) {
	h := consoleOf(t, newFake(), Options{})
	entries, err := os.ReadDir("static")
	require.NoError(t, err)
	types := map[string]string{"icon.svg": "image/svg+xml", "refresh.js": "text/javascript; charset=utf-8", "style.css": "text/css; charset=utf-8"}
	for _, e := range entries {
		require.Equal(t, types[e.Name()], get(t, h, http.MethodGet, "/status/static/"+e.Name()).Header().Get("Content-Type"))
	}
}

func manyAgents(n int) []*agentstatsv1.AgentSummary {
	all := make([]*agentstatsv1.AgentSummary, n)
	for i := range all {
		all[i] = &agentstatsv1.AgentSummary{
			Id: fmt.Sprintf("6a1c9e5e-0000-4000-8000-%012d", i), Name: "dev", Workspace: fmt.Sprintf("w%d", i), Owner: "o", Template: "t", Status: "connected",
		}
	}
	return all
}

// BenchmarkAgents is the largest page: 1,000 of 10,000 agents.
func BenchmarkAgents(b *testing.B) {
	f := newFake()
	f.agents = manyAgents(10_000)
	h := consoleOf(b, f, Options{})
	size := 0
	b.ReportAllocs()
	for b.Loop() {
		size = get(b, h, http.MethodGet, "/status/agents?page_size=1000").Body.Len()
	}
	b.ReportMetric(float64(size), "bytes/page")
}
