// Package documented has the table of Coder's documented families, as the tests of
// all packages compare with it. The product has the same in metrics.Catalogue.
package documented

import (
	_ "embed"
	"strings"
)

//go:embed families.tsv
var table string

// Family is a row of the table.
type Family struct {
	// Name of the family, Type in lower case, Help as it is served.
	Name, Type, Help string
	// Labels in order, and Buckets as text; empty: none.
	Labels, Buckets []string
	// Native is like factor=1.1;max_buckets=100;min_reset=1h; empty: classic only.
	Native string
	// Origin says who makes it: runtime, metadata-batcher, agent-forwarded and so on.
	Origin string
}

// Families returns the rows, sorted by name.
func Families() []Family {
	var families []Family
	for line := range strings.Lines(table) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		column := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		families = append(families, Family{
			Name: column[0], Type: column[1], Labels: list(column[2]), Help: column[3],
			Buckets: list(column[4]), Native: strings.TrimPrefix(column[5], "-"), Origin: column[6],
		})
	}
	return families
}

func list(field string) []string {
	if field == "-" {
		return nil
	}
	return strings.Split(field, ",")
}
