package optiontable

import (
	"github.com/coder/serpent"
)

// sourceNames are what people call the sources of values.
var sourceNames = map[serpent.ValueSource]string{
	serpent.ValueSourceFlag: "flag", serpent.ValueSourceEnv: "environment", serpent.ValueSourceYAML: "file",
	serpent.ValueSourceDefault: "default", serpent.ValueSourceNone: "default",
}

// Row is an option for people, without what is secret in it.
type Row struct {
	Flag, Env string
	// Group of the documentation; empty: none.
	Group string
	// Value in force, and the one without any setting.
	Value, Default string
	// Source of the value: flag, environment, file or default.
	Source string
	// Reloadable: it can change without a restart.
	Reloadable bool
}

// Rows returns the options for people, in their order.
func Rows(options serpent.OptionSet) []Row {
	rows := make([]Row, len(options))
	for i := range options {
		o := &options[i]
		rows[i] = Row{Flag: o.Flag, Env: o.Env, Value: Shown(o), Default: o.Default, Source: sourceNames[o.ValueSource], Reloadable: IsReloadable(o)}
		if o.Group != nil {
			rows[i].Group = o.Group.Name
		}
	}
	return rows
}
