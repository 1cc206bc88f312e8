package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/coder/serpent"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/coder/agentstatsd/optiontable"
)

// chartDir has the chart for Helm.
var chartDir = filepath.Join("..", "..", "deploy", "helm", "agentstatsd")

// chartSchema is deploy/helm/schema.yaml: what the schema has of neither values.yaml nor the
// options.
type chartSchema struct {
	Open       []string
	Values     map[string]map[string]any
	Conditions []any
	Reserved   map[string]map[string]string
}

type object = map[string]any

// TestChart keeps the schema of the chart's values equal to the options and values.yaml, and
// what its templates know of the options.
func TestChart(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(chartDir, "..", "schema.yaml"))
	require.NoError(t, err)
	var given chartSchema
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	require.NoError(t, decoder.Decode(&given))
	parts := map[string]serpent.OptionSet{"service": new(config).options(), "bridge": new(bridgeConfig).options()}

	known := make(object)
	for part, options := range parts {
		known[part] = optionsOfChart(t, options, given.Reserved[part])
	}
	requireGenerated(t, filepath.Join(chartDir, "files", "options.json"), known)

	values, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	require.NoError(t, err)
	var document yaml.Node
	require.NoError(t, yaml.Unmarshal(values, &document))
	s := &schemaMaker{given: &given, configs: object{
		"config": configSchema(t, parts["service"], given.Reserved["service"]), "bridge.config": configSchema(t, parts["bridge"], given.Reserved["bridge"]),
	}}
	root := s.of(t, "", document.Content[0])
	require.Empty(t, given.Values, "schema.yaml has what values.yaml has not")
	require.Empty(t, given.Open, "schema.yaml has what values.yaml has not")
	root["$schema"] = "http://json-schema.org/draft-07/schema#"
	root["properties"].(object)["global"] = object{"type": "object", "description": "Of charts that have this one as a part."}
	root["allOf"] = given.Conditions
	requireGenerated(t, filepath.Join(chartDir, "values.schema.json"), root)
}

// requireGenerated compares a file of JSON, or writes it.
func requireGenerated(t *testing.T, path string, content any) {
	t.Helper()
	var want bytes.Buffer
	encoder := json.NewEncoder(&want)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	require.NoError(t, encoder.Encode(content))
	if *update {
		require.NoError(t, os.WriteFile(path, want.Bytes(), 0o644))
		return
	}
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, want.String() == string(got), "%s: run make generate", path)
}

// optionsOfChart is what the templates know of options, by their keys in the file.
func optionsOfChart(t *testing.T, options serpent.OptionSet, reserved map[string]string) object {
	t.Helper()
	known := make(object)
	for i := range options {
		o := &options[i]
		if o.YAML == "" {
			continue
		}
		fields := object{"default": o.Default, "reloadable": optiontable.IsReloadable(o)}
		if instead, ok := reserved[keyOf(o)]; ok {
			fields["instead"] = instead
		}
		known[keyOf(o)] = fields
	}
	for key := range reserved {
		require.Contains(t, known, key, "schema.yaml reserves what is no option")
	}
	return known
}

func keyOf(o *serpent.Option) string { return o.Group.YAML + "." + o.YAML }

// schemaMaker makes the schema of values.
type schemaMaker struct {
	given *chartSchema
	// configs are the schemas of what is options.
	configs object
}

// of returns the schema of a value, whose type is that of its default.
func (s *schemaMaker) of(t *testing.T, path string, n *yaml.Node) object {
	t.Helper()
	if config, ok := s.configs[path]; ok {
		return config.(object)
	}
	schema := make(object)
	given, special := s.given.Values[path]
	delete(s.given.Values, path)
	switch {
	case n.Kind == yaml.MappingNode && s.open(path):
		schema["type"] = "object"
	case n.Kind == yaml.MappingNode:
		require.NotEmpty(t, n.Content, "%s: schema.yaml has to say that it is open", path)
		properties := make(object)
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i]
			property := s.of(t, strings.TrimPrefix(path+"."+key.Value, "."), n.Content[i+1])
			if text := description(key.HeadComment); text != "" {
				property["description"] = text
			}
			properties[key.Value] = property
		}
		schema["type"], schema["additionalProperties"], schema["properties"] = "object", false, properties
	case n.Kind == yaml.SequenceNode:
		schema["type"] = "array"
	case n.Tag == "!!null":
		require.True(t, special && given["type"] != nil, "%s: schema.yaml has to say its type", path)
	default:
		schema["type"] = map[string]string{"!!str": "string", "!!bool": "boolean", "!!int": "integer"}[n.Tag]
		require.NotEmpty(t, schema["type"], path)
	}
	for key, value := range given {
		schema[key] = value
	}
	return schema
}

// open reports whether the mapping at path has keys of others.
func (s *schemaMaker) open(path string) bool {
	i := slices.Index(s.given.Open, path)
	if i >= 0 {
		s.given.Open = slices.Delete(s.given.Open, i, i+1)
	}
	return i >= 0
}

// description returns the text of a comment in the style of helm-docs: from its last mark on.
func description(comment string) string {
	_, text, marked := strings.Cut("\n"+comment, "\n# -- ")
	if !marked {
		return ""
	}
	return strings.ReplaceAll(text, "\n# ", " ")
}

// configSchema is the schema of a file of options.
func configSchema(t *testing.T, options serpent.OptionSet, reserved map[string]string) object {
	t.Helper()
	groups := make(object)
	for i := range options {
		o := &options[i]
		if o.YAML == "" {
			continue
		}
		group, ok := groups[o.Group.YAML].(object)
		if !ok {
			group = object{"type": []string{"object", "null"}, "description": o.Group.Description, "additionalProperties": false, "properties": make(object)}
			groups[o.Group.YAML] = group
		}
		schema := optionSchema(t, o)
		schema["description"] = o.Description
		if o.Default != "" {
			schema["description"] = fmt.Sprintf("%s Default: %s.", o.Description, o.Default)
		}
		// The templates refuse these with a sentence.
		if instead, ok := reserved[keyOf(o)]; ok {
			schema = object{"deprecated": true, "description": "Set by the chart: " + instead + "."}
		}
		group["properties"].(object)[o.YAML] = schema
	}
	return object{"type": "object", "additionalProperties": false, "properties": groups}
}

// Patterns of a duration of Go, and of a number of bytes.
const (
	durationPattern = `^(0|([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+)$`
	bytesPattern    = `^[0-9]+(B|KiB|MiB|GiB|TiB)?$`
)

// optionSchema is the schema of an option's value.
func optionSchema(t *testing.T, o *serpent.Option) object {
	t.Helper()
	if enum, ok := o.Value.(*serpent.Enum); ok {
		return object{"enum": enum.Choices}
	}
	switch kind := o.Value.Type(); kind {
	case "bool":
		return object{"type": "boolean"}
	case "string":
		return object{"type": "string"}
	case optiontable.List:
		return object{"type": "array", "items": object{"type": "string"}}
	case "duration":
		return object{"type": "string", "pattern": durationPattern}
	case optiontable.SizeType:
		least, most := bounds(t, o)
		return object{"type": []string{"integer", "string"}, "pattern": bytesPattern, "minimum": least, "maximum": most}
	case optiontable.Integer:
		least, most := bounds(t, o)
		return object{"type": "integer", "minimum": least, "maximum": most}
	default:
		t.Fatalf("--%s has the type %s, which no schema is known for", o.Flag, kind)
		return nil
	}
}

// bounds returns the least and the largest whole number that an option takes. It asks the
// option itself: what it takes is a range.
func bounds(t *testing.T, o *serpent.Option) (least, most int64) {
	t.Helper()
	require.NoError(t, o.Value.Set(o.Default), o.Flag)
	var inside int64
	_, err := fmt.Sscan(o.Default, &inside)
	if size := new(optiontable.Bytes); o.Value.Type() == optiontable.SizeType {
		err = size.Set(o.Default)
		inside = int64(*size)
	}
	require.NoError(t, err, o.Flag)
	takes := func(n int64) bool { return o.Value.Set(fmt.Sprint(n)) == nil }
	const beyond = 1 << 41
	require.False(t, takes(-2), o.Flag)
	require.False(t, takes(beyond), o.Flag)
	least = inside - int64(sort.Search(int(inside+2), func(i int) bool { return !takes(inside - int64(i)) })) + 1
	most = inside + int64(sort.Search(beyond, func(i int) bool { return !takes(inside + int64(i)) })) - 1
	return least, most
}

// What the templates compute of an option's default is what the service has.
func TestChartKnowsStopTimeouts(t *testing.T) {
	templates, err := os.ReadFile(filepath.Join(chartDir, "templates", "_helpers.tpl"))
	require.NoError(t, err)
	var c config
	options := c.options()
	require.NoError(t, options.SetDefaults())
	require.LessOrEqual(t, c.stopTimeout()-c.drainTimeout, 40*time.Second)
	var b bridgeConfig
	options = b.options()
	require.NoError(t, options.SetDefaults())
	require.LessOrEqual(t, b.stopTimeout()-b.drainDelay-b.drainTimeout-b.closeTimeout, 10*time.Second)
	require.Contains(t, string(templates), `(eq .part "bridge" | ternary 10 40)`)
}
