package console

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
)

// Accept of programs as they send it.
const (
	prometheusAccept = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5," +
		"text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
	protobufAccept = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.2"
	browserAccept  = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7"
)

func TestPrefersHTML(t *testing.T) {
	for _, c := range []struct {
		html   bool
		accept []string
	}{
		{false, nil}, {false, []string{""}}, {false, []string{"*/*"}}, {false, []string{prometheusAccept}}, {false, []string{protobufAccept}},
		{true, []string{browserAccept}}, {true, []string{"text/html"}}, {true, []string{"TEXT/HTML; Q=0.1"}},
		{true, []string{"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}},
		{false, []string{"text/html, text/plain"}},                           // as much as the registry's
		{false, []string{"text/*"}},                                          // likewise
		{false, []string{"text/html;q=0.3, text/plain;q=0.4"}},               //
		{true, []string{"text/html;q=0.4, text/plain;q=0.3"}},                //
		{false, []string{"text/html;q=0, */*"}},                              // excluded
		{true, []string{"text/plain;q=0.1, text/*;q=0.5"}},                   // the closest range counts
		{true, []string{"text/*, text/plain;q=0.9, */*;q=0.1"}},              //
		{false, []string{"text/html;q=2"}},                                   // no quality
		{false, []string{"text/html;q=x"}},                                   //
		{false, []string{"text/html;q=NaN"}},                                 //
		{true, []string{"text/html ; level=1 ; q = 0.5"}},                    //
		{true, []string{"*/*;q=0.5", "text/html"}},                           // several fields
		{false, []string{"application/*, text/html;q=0.9"}},                  //
		{false, []string{"application/openmetrics-text", "text/html;q=0.9"}}, //
		{false, []string{"image/png, application/json"}},                     //
		{false, []string{",;,;q=1,text/html;q=0,=;;"}},                       // nonsense
	} {
		require.Equal(t, c.html, prefersHTML(c.accept), "%q", c.accept)
	}
}

// Who prefers HTML gets the page, all others the registry; caches are told.
func TestNegotiate(t *testing.T) {
	h := consoleOf(t, newFake(), Options{})
	for accept, page := range map[string]bool{prometheusAccept: false, protobufAccept: false, "*/*": false, browserAccept: true} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			w := get(t, h, method, "/", "Accept", accept)
			require.Equal(t, http.StatusOK, w.Code)
			require.Equal(t, "Accept", w.Header().Get("Vary"))
			require.Equal(t, page, w.Header().Get("Content-Type") == "text/html; charset=utf-8")
		}
	}
	require.Equal(t, "registry", get(t, h, http.MethodGet, "/").Body.String())
	w := get(t, h, http.MethodPost, "/", "Accept", browserAccept)
	require.Equal(t, http.StatusMethodNotAllowed, w.Code)
}

// A scrape of / pays no allocation for the page.
func TestNegotiateAllocations(t *testing.T) {
	h := negotiate(http.NotFoundHandler(), http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
	w := httptest.NewRecorder()
	for _, accept := range []string{"", "*/*", prometheusAccept, protobufAccept} {
		r.Header.Set("Accept", accept)
		require.Zero(t, testing.AllocsPerRun(100, func() { h.ServeHTTP(w, r) }), accept)
	}
}

func BenchmarkNegotiate(b *testing.B) {
	accept := []string{prometheusAccept}
	b.ReportAllocs()
	for b.Loop() {
		if prefersHTML(accept) {
			b.Fatal("the registry is preferred")
		}
	}
}
