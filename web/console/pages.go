package console

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

//go:embed templates
var templateFiles embed.FS

// section is a page that the navigation has.
type section struct {
	Name, Title, Path string
}

var sections = []section{
	{"overview", "Overview", "status"},
	{"agents", "Agents", "status/agents"},
	{"cardinality", "Cardinality", "status/cardinality"},
	{"refusals", "Refusals", "status/refusals"},
	{"explain", "Explain", "status/explain"},
	{"durability", "Durability", "status/durability"},
	{"pushes", "Pushes", "status/pushes"},
	{"config", "Configuration", "status/config"},
	{"replicas", "Replicas", "status/replicas"},
}

// view is what a template is given.
type view struct {
	// Section is the one that the page belongs to, Title what a browser shows.
	Section, Title string
	// Root is the path to / from here. All links begin with it, so that a proxy may put the
	// pages below a path of its own.
	Root string
	// JSON is the path of the same as JSON; empty: there is none.
	JSON string
	// RefreshSeconds is how often the script renews the page; 0: it does not.
	RefreshSeconds int
	// Version is that of the static files.
	Version  string
	Sections []section
	// Query has the parameters of the request.
	Query url.Values
	Data  any

	now time.Time
}

// Age returns how long ago a time was, in words.
func (v *view) Age(t *timestamppb.Timestamp) string {
	if !isSet(t) {
		return unknown
	}
	return duration(max(0, v.now.Sub(t.AsTime())).Truncate(time.Second).Seconds())
}

// Until returns how long it is to a time, in words; below 0 it has passed.
func (v *view) Until(t *timestamppb.Timestamp) string {
	if !isSet(t) {
		return unknown
	}
	return duration(t.AsTime().Sub(v.now).Truncate(time.Second).Seconds())
}

// Soon reports whether a time is less than so many days away.
func (v *view) Soon(t *timestamppb.Timestamp, days int) bool {
	return isSet(t) && t.AsTime().Sub(v.now) < time.Duration(days)*24*time.Hour
}

// Moment returns a time as machines read it.
func (v *view) Moment(t *timestamppb.Timestamp) string {
	if !isSet(t) {
		return ""
	}
	return rfc3339(t.AsTime())
}

// Link returns a path with a query of names and values in turn. What is empty is left
// out.
func (v *view) Link(path string, query ...string) string {
	values := make(url.Values)
	for i := 0; i+1 < len(query); i += 2 {
		if query[i+1] != "" {
			values.Set(query[i], query[i+1])
		}
	}
	if len(values) == 0 {
		return v.Root + path
	}
	return v.Root + path + "?" + values.Encode()
}

// page is one that is served. It returns what its template is given.
type page struct {
	path, template, section, title string
	json                           string
	refresh                        time.Duration
	data                           func(ctx context.Context, r *http.Request, query url.Values) (any, error)
}

// addPages adds the pages.
func (c *Console) addPages() {
	const often, seldom = 5 * time.Second, 15 * time.Second
	overview := page{template: "overview", section: "overview", title: "Overview", json: "replicas", refresh: often, data: c.overview}
	for _, path := range []string{"/{$}", "/status"} {
		overview.path = path
		c.addPage(overview)
	}
	for _, p := range []page{
		{path: "/status/agents", template: "agents", section: "agents", title: "Agents", json: "agents", refresh: often, data: c.agents},
		{path: "/status/agents/{agent...}", template: "agent", section: "agents", title: "Agent", json: "agents", refresh: often, data: c.agent},
		{path: "/status/cardinality", template: "cardinality", section: "cardinality", title: "Cardinality", json: "cardinality", data: c.cardinality},
		{path: "/status/refusals", template: "refusals", section: "refusals", title: "Refusals", json: "refusals", refresh: seldom, data: c.refusals},
		{path: "/status/explain", template: "explain", section: "explain", title: "Explain", json: "explain", refresh: seldom, data: c.explain},
		{path: "/status/durability", template: "durability", section: "durability", title: "Durability", json: "history", refresh: often, data: c.durability},
		{path: "/status/pushes", template: "pushes", section: "pushes", title: "Pushes", json: "pushes", refresh: seldom, data: c.pushes},
		{path: "/status/config", template: "config", section: "config", title: "Configuration", json: "config", data: c.config},
		{path: "/status/replicas", template: "replicas", section: "replicas", title: "Replicas", json: "replicas", refresh: often, data: c.replicas},
	} {
		c.addPage(p)
	}
	c.mux.HandleFunc("GET /status/", func(w http.ResponseWriter, r *http.Request) {
		c.showError(w, r, http.StatusNotFound, "There is no such page.")
	})
}

func (c *Console) addPage(p page) {
	c.mux.HandleFunc("GET "+p.path, func(w http.ResponseWriter, r *http.Request) {
		query, err := parseQuery(r)
		var data any
		if err == nil {
			data, err = p.data(r.Context(), r, query)
		}
		if err != nil {
			code, text := c.failed(r, err)
			c.showError(w, r, code, text)
			return
		}
		v := c.view(r, p.section, p.title)
		v.Query, v.Data, v.RefreshSeconds = query, data, int(p.refresh.Seconds())
		if titled, ok := data.(interface{ title() string }); ok {
			v.Title = titled.title()
		}
		if data != nil {
			v.JSON = jsonPath(v.Root, p.json, r, query)
		}
		c.show(w, r, p.template, http.StatusOK, v)
	})
}

// jsonPath returns where the JSON of a page is, of the same parameters as far as it has
// them.
func jsonPath(root, name string, r *http.Request, query url.Values) string {
	path := root + strings.TrimPrefix(answersPath, "/") + name
	if agent := r.PathValue("agent"); agent != "" {
		return path + "/" + url.PathEscape(agent)
	}
	kept := make(url.Values)
	for _, field := range answerParameters[name] {
		if query.Get(field) != "" {
			kept[field] = query[field]
		}
	}
	if len(kept) > 0 {
		path += "?" + kept.Encode()
	}
	return path
}

// answerParameters are the parameters of the JSON that pages have, too.
var answerParameters = map[string][]string{
	"agents":      {"query", "owner", "template", "status", "page_size", "page_token"},
	"cardinality": {"by", "label", "family", "limit"},
	"refusals":    {"limit"},
	"explain":     {"selector"},
}

func (c *Console) view(r *http.Request, section, title string) *view {
	return &view{
		Section: section, Title: title, Root: rootOf(r.URL), Version: c.static.version, Sections: sections, now: time.Now(),
	}
}

// rootOf returns the relative path from a URL to /.
func rootOf(u *url.URL) string {
	below := strings.Count(u.EscapedPath(), "/") - 1
	if below <= 0 {
		return "./"
	}
	return strings.Repeat("../", below)
}

// failure is what a page of an error shows.
type failure struct {
	Code       int
	Text, Name string
}

func (c *Console) showError(w http.ResponseWriter, r *http.Request, code int, text string) {
	v := c.view(r, "", http.StatusText(code))
	v.Data = failure{code, text, http.StatusText(code)}
	c.show(w, r, "error", code, v)
}

// buffers keep pages while they are made: an error of a template is not half a page.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// keptBuffer bounds what a buffer keeps for the next page.
const keptBuffer = 256 << 10

func (c *Console) show(w http.ResponseWriter, r *http.Request, name string, code int, v *view) {
	body := buffers.Get().(*bytes.Buffer)
	defer func() {
		if body.Cap() <= keptBuffer {
			body.Reset()
			buffers.Put(body)
		}
	}()
	if err := c.pages[name].ExecuteTemplate(body, "page", v); err != nil {
		c.log.Error("a page cannot be made", "path", r.URL.Path, "error", err)
		http.Error(w, "the page could not be made: the service's log says why", http.StatusInternalServerError)
		return
	}
	write(w, "text/html; charset=utf-8", code, body)
}

// parsePages returns the template of each page, with what all have.
func parsePages() (map[string]*template.Template, error) {
	common, err := template.New("").Funcs(template.FuncMap{
		"number": number, "size": size, "duration": duration, "percent": percent, "share": share, "limited": limited, "words": words, "title": title, "isSet": isSet,
		"agentName": agentName, "bar": newBar, "list": func(items ...any) []any { return items },
	}).ParseFS(templateFiles, "templates/page.html")
	if err != nil {
		return nil, fmt.Errorf("parse templates: %w", err)
	}
	entries, err := templateFiles.ReadDir("templates")
	if err != nil {
		return nil, fmt.Errorf("read templates: %w", err)
	}
	pages := make(map[string]*template.Template)
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), ".html")
		if name == "page" {
			continue
		}
		own, err := common.Clone()
		if err == nil {
			own, err = own.ParseFS(templateFiles, "templates/"+e.Name())
		}
		if err != nil {
			return nil, fmt.Errorf("parse template %s: %w", name, err)
		}
		pages[name] = own
	}
	return pages, nil
}

// ask fills a request from the path and the query, and calls.
func ask[Req proto.Message, Resp any](ctx context.Context, r *http.Request, query url.Values, call func(context.Context, Req) (Resp, error)) (Req, Resp, error) {
	var none Req
	req := none.ProtoReflect().New().Interface().(Req)
	var resp Resp
	err := fill(req, r, query)
	if err == nil {
		resp, err = call(ctx, req)
	}
	return req, resp, err
}
