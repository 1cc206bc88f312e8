package optiontable

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/coder/serpent"
)

// sourceNames are what people call the sources of values.
var sourceNames = map[serpent.ValueSource]string{
	serpent.ValueSourceFlag: "flag", serpent.ValueSourceEnv: "environment", serpent.ValueSourceYAML: "file",
	serpent.ValueSourceDefault: "default", serpent.ValueSourceNone: "default",
}

// Print writes the options as the YAML file that sets them, each with its source as a
// comment, without secrets. Options that no file has are comments.
func Print(w io.Writer, options serpent.OptionSet) error {
	var b strings.Builder
	var group *serpent.Group
	for i := range options {
		o := &options[i]
		if o.Group != group {
			group = o.Group
			if group != nil {
				fmt.Fprintf(&b, "%s:\n", group.YAML)
			}
		}
		if o.YAML == "" || o.Group == nil {
			fmt.Fprintf(&b, "# --%s %s (%s)\n", o.Flag, Shown(o), sourceNames[o.ValueSource])
			continue
		}
		fmt.Fprintf(&b, "  %s: %s # %s\n", o.YAML, yamlValue(o), sourceNames[o.ValueSource])
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// yamlValue returns a value as the file has it. Texts are quoted in the way of JSON, which
// YAML reads.
func yamlValue(o *serpent.Option) string {
	switch o.Value.Type() {
	case "bool", Integer, SizeType, "duration":
		return Shown(o)
	}
	return strconv.Quote(Shown(o))
}
