package optiontable

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/coder/serpent"
)

// Print writes the options as the YAML file that sets them, each with its source as a
// comment, without secrets. Options that no file has are comments.
func Print(w io.Writer, options serpent.OptionSet) error {
	var b strings.Builder
	var group *serpent.Group
	for i, row := range Rows(options) {
		o := &options[i]
		if o.Group != group {
			group = o.Group
			if group != nil {
				fmt.Fprintf(&b, "%s:\n", group.YAML)
			}
		}
		if o.YAML == "" || o.Group == nil {
			fmt.Fprintf(&b, "# --%s %s (%s)\n", row.Flag, row.Value, row.Source)
			continue
		}
		fmt.Fprintf(&b, "  %s: %s # %s\n", o.YAML, yamlValue(o, row.Value), row.Source)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// yamlValue returns a value as the file has it. Texts are quoted in the way of JSON, which
// YAML reads.
func yamlValue(o *serpent.Option, value string) string {
	switch o.Value.Type() {
	case "bool", Integer, SizeType, "duration":
		return value
	}
	return strconv.Quote(value)
}
