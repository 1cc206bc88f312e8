package pushed

import "github.com/coder/agentstatsd/metrics"

// Headed is Families with the headers of the documented ones of coderd that nobody has
// pushed: in text their HELP and TYPE are served from the start.
type Headed struct {
	families *Families
	// headers are families without series, sorted by name.
	headers []*metrics.Rendered
}

// WithHeaders returns f with headers.
func (f *Families) WithHeaders() *Headed {
	h := &Headed{families: f}
	for _, d := range metrics.Catalogue() {
		if d.Owner == metrics.OwnerCoderd {
			header := metrics.Header{Name: d.Name, Help: d.Help, Type: d.Type}
			h.headers = append(h.headers, &metrics.Rendered{Name: d.Name, Help: d.Help, Type: d.Type, Text: header.AppendText(nil)})
		}
	}
	return h
}

// Served returns what Families.Served does, and the headers of those that are not among
// them. Nothing of the result is ever changed.
func (h *Headed) Served() (families []*metrics.Rendered, passed map[string]bool) {
	pushed, passed := h.families.Served()
	families = make([]*metrics.Rendered, 0, len(pushed)+len(h.headers))
	rest := h.headers
	for _, f := range pushed {
		for len(rest) > 0 && rest[0].Name < f.Name {
			families, rest = append(families, rest[0]), rest[1:]
		}
		if len(rest) > 0 && rest[0].Name == f.Name {
			rest = rest[1:]
		}
		families = append(families, f)
	}
	return append(families, rest...), passed
}
