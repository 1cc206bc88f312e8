package console

import (
	"net/http"
	"strconv"
	"strings"
)

// negotiate serves page to who prefers HTML to what the registry is served as, and the
// registry to all others. Neither costs the other's scrapes an allocation.
func negotiate(page, registry http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if prefersHTML(r.Header["Accept"]) {
			w.Header().Set("Vary", "Accept")
			page.ServeHTTP(w, r)
			return
		}
		registry.ServeHTTP(w, r)
	})
}

// How closely a media range names a type: the closest one says its quality.
const (
	namesNothing = iota
	namesAll
	namesMain
	namesType
)

// quality is that of a type, by the range that names it most closely.
type quality struct {
	value     float64
	closeness int
}

func (q *quality) update(closeness int, value float64) {
	if closeness > q.closeness {
		*q = quality{value, closeness}
	}
}

// prefersHTML reports whether fields of Accept prefer text/html to all types that a
// registry is served as. If they prefer none, as those of curl, it is false.
func prefersHTML(accept []string) bool {
	var html, text, openMetrics, protobuf quality
	for _, field := range accept {
		for field != "" {
			var part string
			part, field, _ = strings.Cut(field, ",")
			name, value := parseRange(part)
			switch {
			case name == "*/*":
				for _, q := range [...]*quality{&html, &text, &openMetrics, &protobuf} {
					q.update(namesAll, value)
				}
			case strings.EqualFold(name, "text/*"):
				html.update(namesMain, value)
				text.update(namesMain, value)
			case strings.EqualFold(name, "application/*"):
				openMetrics.update(namesMain, value)
				protobuf.update(namesMain, value)
			case strings.EqualFold(name, "text/html"):
				html.update(namesType, value)
			case strings.EqualFold(name, "text/plain"):
				text.update(namesType, value)
			case strings.EqualFold(name, "application/openmetrics-text"):
				openMetrics.update(namesType, value)
			case strings.EqualFold(name, "application/vnd.google.protobuf"):
				protobuf.update(namesType, value)
			}
		}
	}
	return html.value > max(text.value, openMetrics.value, protobuf.value)
}

// parseRange returns the type of a media range and its quality, 1 unless it has one.
// What is no number from 0 to 1 is 0.
func parseRange(part string) (name string, value float64) {
	name, parameters, _ := strings.Cut(part, ";")
	value = 1
	for parameters != "" {
		var parameter string
		parameter, parameters, _ = strings.Cut(parameters, ";")
		key, text, _ := strings.Cut(parameter, "=")
		if !strings.EqualFold(strings.TrimSpace(key), "q") {
			continue
		}
		q, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
		if err != nil || !(q >= 0 && q <= 1) {
			q = 0
		}
		value = q
	}
	return strings.TrimSpace(name), value
}
