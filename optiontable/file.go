// Package optiontable is what follows from a table of options: the YAML file that sets
// them, where each value came from, what differs between two of them, and their
// descriptions for people.
package optiontable

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/coder/serpent"
	"go.yaml.in/yaml/v3"

	"github.com/coder/agentstatsd/secrets"
)

// What serpent calls the types of a list and of a whole number.
const (
	List    = "string-array"
	Integer = "int"
)

// leadingZeros matches a number whose value depends on the version of YAML: 010 is 8 in
// YAML 1.1 and 10 in YAML 1.2.
var leadingZeros = regexp.MustCompile(`^[-+]?0[0-9]+$`)

// ApplyFile sets what the YAML file at path has of the options that have
// their default. Values go the way of a flag's, through the same checks. Its
// errors name the line and the key; they never show a value of text.
func ApplyFile(path string, options serpent.OptionSet) error {
	// It may hold passwords, and decides whom the service trusts.
	text, _, err := secrets.ReadFile(path)
	if err != nil {
		return err
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var document yaml.Node
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF):
		return nil // nothing, or comments only: the defaults
	case err != nil:
		return err
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return errors.New("want one YAML document, got more")
	}
	root := document.Content[0]
	if isNull(root) {
		return nil
	}
	return applyGroups(root, options)
}

// applyGroups applies the mapping of groups that a file is.
func applyGroups(root *yaml.Node, options serpent.OptionSet) error {
	groups := make(map[string][]*serpent.Option)
	for i := range options {
		if o := &options[i]; o.Group != nil && o.YAML != "" {
			groups[o.Group.YAML] = append(groups[o.Group.YAML], o)
		}
	}
	return eachKey(root, "the file", func(key, value *yaml.Node) error {
		group, ok := groups[key.Value]
		if !ok {
			return fmt.Errorf("line %d: no group is named %s: want one of %s", key.Line, key.Value, names(groups))
		}
		if isNull(value) {
			return nil // a group whose keys are comments
		}
		byKey := make(map[string]*serpent.Option, len(group))
		for _, o := range group {
			byKey[o.YAML] = o
		}
		return eachKey(value, key.Value, func(name, value *yaml.Node) error {
			o, ok := byKey[name.Value]
			if !ok {
				return fmt.Errorf("line %d: %s has no key %s: want one of %s", name.Line, key.Value, name.Value, names(byKey))
			}
			if err := applyValue(o, value); err != nil {
				return fmt.Errorf("line %d: %s.%s: %w", name.Line, key.Value, name.Value, err)
			}
			return nil
		})
	})
}

// eachKey calls f for each key of the mapping n, which subject names in errors.
// It goes on after an error and returns all.
func eachKey(n *yaml.Node, subject string, f func(key, value *yaml.Node) error) error {
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: want %s to be a mapping of keys to values", n.Line, subject)
	}
	var errs []error
	seen := make(map[string]int)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if value.Kind == yaml.AliasNode {
			value = value.Alias
		}
		if line, twice := seen[key.Value]; twice {
			errs = append(errs, fmt.Errorf("line %d: %s stands in %s already, in line %d", key.Line, key.Value, subject, line))
			continue
		}
		seen[key.Value] = key.Line
		errs = append(errs, f(key, value))
	}
	return errors.Join(errs...)
}

// applyValue sets o from the file, unless a flag or the environment did.
func applyValue(o *serpent.Option, n *yaml.Node) error {
	list := o.Value.Type() == List
	var text string
	switch {
	case isNull(n):
		return errors.New("want a value, got none: leave the key out for the default")
	case n.Kind == yaml.ScalarNode && n.Value == "" && !list && o.Value.Type() != "string":
		return errors.New("want a value, got an empty text")
	case n.Kind == yaml.ScalarNode && (o.Value.Type() == Integer || o.Value.Type() == SizeType) && leadingZeros.MatchString(n.Value):
		return fmt.Errorf("want a number without leading zeros, got %s: some readers of YAML take it for octal", n.Value)
	case n.Kind == yaml.ScalarNode:
		text = n.Value
	case n.Kind == yaml.SequenceNode && list:
		var err error
		if text, err = commaSeparated(n); err != nil {
			return err
		}
	default:
		return fmt.Errorf("want a %s", o.Value.Type())
	}
	if o.ValueSource != serpent.ValueSourceDefault && o.ValueSource != serpent.ValueSourceNone {
		return nil
	}
	if list { // setting it adds to the default
		if err := o.Value.Set(""); err != nil {
			return err
		}
	}
	o.ValueSource = serpent.ValueSourceYAML
	return plainError(o.Value.Set(text))
}

// commaSeparated returns the texts of a list as flags take them.
func commaSeparated(n *yaml.Node) (string, error) {
	texts := make([]string, len(n.Content))
	for i, e := range n.Content {
		if e.Kind != yaml.ScalarNode || isNull(e) {
			return "", fmt.Errorf("want a list of texts, got something else in line %d", e.Line)
		}
		texts[i] = e.Value
	}
	return joinTexts(texts)
}

// joinTexts returns texts as flags take them: a line of CSV.
func joinTexts(texts []string) (string, error) {
	if len(texts) == 0 {
		return "", nil
	}
	var b strings.Builder
	w := csv.NewWriter(&b)
	if err := w.Write(texts); err != nil {
		return "", err
	}
	w.Flush()
	return strings.TrimSuffix(b.String(), "\n"), w.Error()
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// names returns the keys of m in order.
func names[V any](m map[string]V) string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return strings.Join(keys, ", ")
}
