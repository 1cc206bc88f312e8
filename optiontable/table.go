package optiontable

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"regexp"

	"github.com/coder/serpent"
	"github.com/spf13/pflag"

	"github.com/coder/agentstatsd/internal/redact"
)

// reloadable is the annotation of options that can change without a restart.
const reloadable = "reloadable"

// MarkReloadable marks the options with these flags: they can change without a restart.
// Flags that options do not have are left out.
func MarkReloadable(options serpent.OptionSet, flags []string) {
	for _, flag := range flags {
		if o := options.ByFlag(flag); o != nil {
			o.Annotations = o.Annotations.Mark(reloadable, "")
			o.Description += " Can be reloaded."
		}
	}
}

// IsReloadable reports whether an option can change without a restart.
func IsReloadable(o *serpent.Option) bool { return o.Annotations.IsSet(reloadable) }

// Given are the values that flags and environment gave, by flag. They do not change while
// the process runs.
type Given map[string]serpent.Option

// GivenIn returns those of options, before a file is applied.
func GivenIn(options serpent.OptionSet) Given {
	given := make(Given)
	for _, o := range options {
		if o.ValueSource == serpent.ValueSourceFlag || o.ValueSource == serpent.ValueSourceEnv {
			// The value itself is changed by nobody, but a copy cannot share it with options.
			o.Value = &text{encoded(o.Value)}
			given[o.Flag] = o
		}
	}
	return given
}

// text is a value as flags take it.
type text struct{ string }

// String implements pflag.Value.
func (t *text) String() string { return t.string }

// Set implements pflag.Value.
func (t *text) Set(s string) error { t.string = s; return nil }

// Type implements pflag.Value.
func (t *text) Type() string { return "string" }

// Apply sets the defaults of options, and what was given.
func (g Given) Apply(options serpent.OptionSet) error {
	if err := options.SetDefaults(); err != nil {
		return err
	}
	for i := range options {
		o := &options[i]
		given, ok := g[o.Flag]
		if !ok {
			continue
		}
		if err := set(o.Value, given.Value.String()); err != nil {
			return fmt.Errorf("--%s: %w", o.Flag, err)
		}
		o.ValueSource = given.ValueSource
	}
	return nil
}

// encoded returns a value as flags take it.
func encoded(v pflag.Value) string {
	if list, ok := v.(pflag.SliceValue); ok { // serpent's own String returns nothing
		text, err := joinTexts(list.GetSlice())
		if err == nil {
			return text
		}
	}
	return v.String()
}

// set sets a value. Of a list it is the whole.
func set(v pflag.Value, to string) error {
	if v.Type() == List {
		if err := v.Set(""); err != nil || to == "" {
			return err
		}
	}
	return v.Set(to)
}

// InOrder returns the options of a table in the order of another one of the same command,
// without those that the other one lacks.
func InOrder(options, like serpent.OptionSet) serpent.OptionSet {
	ordered := make(serpent.OptionSet, 0, len(like))
	for i := range like {
		if o := options.ByFlag(like[i].Flag); o != nil {
			ordered = append(ordered, *o)
		}
	}
	return ordered
}

// NotDefault returns the values of the options of which keep is true, by flag, that differ
// from the defaults. defaults is a table of the same options.
func NotDefault(options, defaults serpent.OptionSet, keep func(*serpent.Option) bool) (map[string]string, error) {
	if err := defaults.SetDefaults(); err != nil {
		return nil, err
	}
	values := make(map[string]string)
	for i := range options {
		o := &options[i]
		if d := defaults.ByFlag(o.Flag); d != nil && keep(o) && encoded(d.Value) != encoded(o.Value) {
			values[o.Flag] = Shown(o)
		}
	}
	return values, nil
}

// Difference is an option whose value differs between two readings of a table.
type Difference struct {
	Flag string `json:"option"`
	// Before and After are the values without what is secret in them.
	Before string `json:"before"`
	After  string `json:"after"`
}

// String returns the difference for a log line.
func (d Difference) String() string { return fmt.Sprintf("--%s: %s -> %s", d.Flag, d.Before, d.After) }

// Settle compares a table that was read anew with the one in force. It returns what can
// change without a restart, and what cannot. Of the latter next gets the values in force.
func Settle(inForce, next serpent.OptionSet) (changed, needRestart []Difference, err error) {
	for i := range next {
		o := &next[i]
		old := inForce.ByFlag(o.Flag)
		if old == nil || encoded(old.Value) == encoded(o.Value) {
			continue
		}
		d := Difference{o.Flag, Shown(old), Shown(o)}
		if IsReloadable(o) {
			changed = append(changed, d)
			continue
		}
		needRestart = append(needRestart, d)
		if err := set(o.Value, encoded(old.Value)); err != nil {
			return nil, nil, fmt.Errorf("--%s: %w", o.Flag, err)
		}
		o.ValueSource = old.ValueSource
	}
	return changed, needRestart, nil
}

// Hash returns a number that differs if the values differ, as they are shown: whoever
// reads it cannot try passwords. It has no more than 48 bits, which a sample of Prometheus
// keeps.
func Hash(options serpent.OptionSet) uint64 {
	h := sha256.New()
	for i := range options {
		v := Shown(&options[i])
		_, _ = fmt.Fprintf(h, "%s %d %s\n", options[i].Flag, len(v), v)
	}
	return binary.BigEndian.Uint64(h.Sum(nil)) >> 16
}

// tokenParameter matches a token in a URL of ours. Other secrets are those of all texts.
var tokenParameter = regexp.MustCompile(`(?i)\b(token=)[^&\s]+`)

// zeroUnits matches the units of a duration that are 0, behind one that is not.
var zeroUnits = regexp.MustCompile(`([hm])(?:0m)?0s$`)

// Shown returns an option's value for people, without what is secret in it.
func Shown(o *serpent.Option) string {
	v := encoded(o.Value)
	if o.Value.Type() == "duration" { // as people write it: 1h, not 1h0m0s
		v = zeroUnits.ReplaceAllString(v, "$1")
	}
	return tokenParameter.ReplaceAllString(redact.Text(v), "${1}xxxxx")
}
