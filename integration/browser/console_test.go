package browser

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// pages are all pages of a large deployment, with few rows each.
var pages = []string{
	"/", "/status/agents?page_size=10", "/status/agents/" + uuid(53), "/status/cardinality?limit=10&cost=1&what_if_labels=username",
	"/status/refusals", "/status/explain?selector=app_requests_total", "/status/durability", "/status/pushes", "/status/config", "/status/replicas", "/status/none",
}

// axe-core finds nothing on any page, in light and dark, wide and narrow, and none is wider
// than the window.
func TestAccessible(t *testing.T) {
	t.Parallel()
	b := newTab(t, serve(t, newLarge()))
	for _, path := range pages {
		b.open(path)
		b.loadAxe()
		for _, scheme := range []string{"light", "dark"} {
			for name, width := range map[string]int64{"wide": 1440, "narrow": 390} {
				b.look(width, scheme)
				for _, v := range b.violations(scheme == "dark") {
					t.Errorf("%s, %s, %s: %s: %s: %+v", path, scheme, name, v.ID, v.Help, v.Nodes)
				}
				require.LessOrEqual(t, evaluate[int](b, "document.documentElement.scrollWidth - document.documentElement.clientWidth"), 0, "%s, %s", path, name)
				if path != "/status/none" { // of which the browser complains itself
					b.noComplaints()
				}
				if *screenshots != "" {
					b.picture(strings.Trim(strings.NewReplacer("/", "-", "?", "-", "&", "-", "=", "-").Replace(path)+"-"+scheme+"-"+name, "-"))
				}
			}
		}
	}
}

// Of 10,000 agents those that are looked for are found, and paged through, with the keyboard
// and with the mouse; with a script and without.
func TestSearchAndPaging(t *testing.T) {
	for _, scripts := range []bool{true, false} {
		t.Run(fmt.Sprint("scripts ", scripts), func(t *testing.T) {
			t.Parallel()
			b := newTab(t, serve(t, newLarge()))
			caption := func() string { return run(b, chromedp.Text(chromedp.CSS("#found caption"))) }
			if scripts {
				b.before(`window.setTimeout = () => 0`) // nothing is renewed while it is clicked
			} else {
				call(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
			}
			b.open("/status/agents")
			require.Equal(t, "Agents 1 to 100 of 10,000", caption())
			run(b, chromedp.SendKeys(chromedp.CSS("[name=query]"), "payments"+kb.Enter))
			run(b, chromedp.WaitVisible(chromedp.CSS("[name=query][value=payments]")))
			require.Equal(t, "Agents 1 to 100 of 1,666", caption())
			for _, want := range []string{"Agents 101 to 200 of 1,666", "Agents 201 to 300 of 1,666"} {
				run(b, chromedp.Click(chromedp.CSS("a[rel=next]")))
				run(b, chromedp.WaitVisible(chromedp.Search(`//caption[.="`+want+`"]`)))
			}
			run(b, chromedp.Click(chromedp.Search(`//nav[@class="paging"]/a[.="First page"]`)))
			run(b, chromedp.WaitVisible(chromedp.Search(`//caption[.="Agents 1 to 100 of 1,666"]`)))
			run(b, chromedp.Click(chromedp.CSS("#found tbody tr:first-child th a")))
			run(b, chromedp.WaitVisible(chromedp.Search(`//h1[.="bruno/payments-004.main"]`)))
			b.noComplaints()
		})
	}
}

// faster lets time go by a hundred times as fast for a page.
const faster = `{const after = window.setTimeout; window.setTimeout = (f, ms) => after(f, ms / 100);}`

// counting is a deployment of which each status counts one agent more.
type counting struct {
	*large
	asked atomic.Int64
}

func (c *counting) GetStatus(ctx context.Context, req *agentstatsv1.GetStatusRequest) (*agentstatsv1.GetStatusResponse, error) {
	resp, err := c.large.GetStatus(ctx, req)
	resp.Replicas[1].Registered = float64(c.asked.Add(1))
	return resp, err
}

// The script renews the page, but not while it is paused or hidden, or somebody types; what
// is looked at stays where it is.
func TestRefresh(t *testing.T) {
	t.Parallel()
	api := &counting{large: newLarge()}
	b := newTab(t, serve(t, api))
	b.before(faster)
	b.open("/status/replicas")
	// What is renewed now and then is clicked at once, and not looked for first.
	click := func(selector string) {
		t.Helper()
		run(b, chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`document.querySelector(%q).click()`, selector)))
	}
	shown := func() string { return evaluate[string](b, `document.querySelector("#replica-1 .facts").textContent`) }
	renewed := func() {
		t.Helper()
		before := shown()
		run(b, chromedp.Poll[bool](fmt.Sprintf(`document.querySelector("#replica-1 .facts").textContent !== %q`, before)))
	}
	renewed()
	// Details that were opened stay open.
	require.False(t, evaluate[bool](b, `document.querySelector("#replica-1 details").open`))
	click("#replica-1 summary")
	renewed()
	renewed()
	require.True(t, evaluate[bool](b, `document.querySelector("#replica-1 details").open`))
	// Nor is a table in the way that was clicked. It stays scrolled, and has the focus.
	b.look(240, "light")
	run(b, chromedp.Evaluate[chromedp.Void](`{const table = document.querySelector("#replica-1 .scroll"); table.focus(); table.scrollLeft = 40}`))
	renewed()
	require.True(t, evaluate[bool](b, `document.activeElement.closest("#replica-1") !== null`))
	require.Equal(t, 40, evaluate[int](b, `document.querySelector("#replica-1 .scroll").scrollLeft`))

	stands := func(why string) {
		t.Helper()
		before := api.asked.Load()
		evaluate[int](b, `new Promise((done) => setTimeout(() => done(1), 50000))`) // half a second
		require.LessOrEqual(t, api.asked.Load(), before+1, why)                     // one may have been under way
	}
	click("#pause")
	stands("paused")
	require.Equal(t, "Paused", evaluate[string](b, `document.querySelector("#refreshed").textContent`))
	click("#pause")
	renewed()
	b.open("/status/agents")
	run(b, chromedp.Evaluate[chromedp.Void](`document.querySelector("[name=query]").focus()`))
	before := len(b.asked())
	evaluate[int](b, `new Promise((done) => setTimeout(() => done(1), 50000))`)
	require.LessOrEqual(t, len(b.asked()), before+1, "somebody types")
	b.noComplaints()
}

// A page that cannot be renewed stays, and says since when.
func TestRefreshFails(t *testing.T) {
	t.Parallel()
	b := newTab(t, serve(t, newLarge()))
	b.before(faster + `window.fetch = () => Promise.reject(new TypeError("away"));`)
	b.open("/status")
	run(b, chromedp.WaitVisible(chromedp.Search(`//*[@id="refreshed" and starts-with(., "Not renewed since")]`)))
	require.Contains(t, run(b, chromedp.Text(chromedp.CSS("h1"))), "agentstatsd-0")
}

// Every link of every page of a service that runs answers, and nothing is asked for
// elsewhere. Without credentials nobody sees anything.
func TestDemo(t *testing.T) {
	t.Parallel()
	d := startDemo(t)
	for _, path := range []string{"/", "/status", "/status/agents", "/status/static/style.css", "/api/v1/status/agents", "/api/v1/status/none", "/metrics"} {
		require.Equal(t, http.StatusUnauthorized, demo{origin: d.origin}.get(t, path).StatusCode, path)
	}
	b := newTab(t, d.origin)
	b.authorize(d.user, d.password)
	seen, looked := map[string]bool{}, map[string]int{}
	for waiting := []string{"/"}; len(waiting) > 0; {
		path := waiting[0]
		waiting = waiting[1:]
		if seen[path] {
			continue
		}
		seen[path] = true
		if looked[kindOf(t, path)]++; looked[kindOf(t, path)] > 3 { // they are alike
			continue
		}
		if path != "/" && !strings.HasPrefix(path, "/status") { // not a page
			require.Equal(t, http.StatusOK, d.get(t, path).StatusCode, path)
			continue
		}
		response := run(b, chromedp.NavigateResponse(b.origin+path))
		require.EqualValues(t, http.StatusOK, response.Status, path)
		for _, link := range evaluate[[]string](b, `[...document.links].map((a) => a.href)`) {
			next, ok := strings.CutPrefix(link, b.origin)
			require.True(t, ok, "%s links to %s", path, link)
			next, _, _ = strings.Cut(next, "#")
			waiting = append(waiting, next)
		}
	}
	require.Greater(t, len(looked), 20)
	b.noComplaints()
}

// kindOf returns a path without what differs between pages of a kind: ids, and the values
// of parameters.
func kindOf(t *testing.T, path string) string {
	t.Helper()
	u, err := url.Parse(path)
	require.NoError(t, err)
	kind := u.Path
	if i := strings.Index(kind, "/agents/"); i >= 0 {
		kind = kind[:i] + "/agents/ID"
	}
	return fmt.Sprint(kind, slices.Sorted(maps.Keys(u.Query())))
}
