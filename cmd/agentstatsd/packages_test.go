package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/coder/serpent"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/optiontable"
)

// packaged are the configuration files of the packages: their introduction, and the options
// that are set in them.
var packaged = []struct {
	name, intro string
	options     func() serpent.OptionSet
	set         map[string]string
}{
	{
		"agentstatsd.yaml", "Options of agentstatsd.service. Variables of agentstatsd.env win over them.\n\n" +
			"  agentstatsd check --config /etc/agentstatsd/agentstatsd.yaml\n  systemctl reload agentstatsd",
		func() serpent.OptionSet { return new(config).options() }, map[string]string{"data-dir": "/var/lib/agentstatsd"},
	},
	{
		"agentstatsd-bridge.yaml", "Options of agentstatsd-bridge.service. Variables of agentstatsd-bridge.env win over them. " +
			"It needs upstream, the URL of coderd, at least. The files of tokens are named in the unit.\n\n" +
			"  agentstatsd bridge --config /etc/agentstatsd/agentstatsd-bridge.yaml --print-config\n  systemctl enable --now agentstatsd-bridge",
		func() serpent.OptionSet { return new(bridgeConfig).options() }, map[string]string{
			"service-url": "agentstatsd://127.0.0.1:2113?plaintext=true&token_file=/run/credentials/agentstatsd-bridge.service/coderd-token",
		},
	},
}

// The packages' configuration files name each option with its default, and what they set is
// the only thing that differs from it.
func TestPackagedConfiguration(t *testing.T) {
	dir := filepath.Join(root, "deploy", "packages", "etc")
	for _, p := range packaged {
		service := strings.TrimSuffix(p.name, ".yaml")
		for name, want := range map[string]string{
			p.name:           exampleFile(p.intro, p.options(), p.set),
			service + ".env": exampleVariables(service, p.options()),
		} {
			path := filepath.Join(dir, name)
			if *update {
				require.NoError(t, os.WriteFile(path, []byte(want), 0o644))
				continue
			}
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, want, string(text), "run make generate")
		}
		// Each commented line is one that the program takes.
		text, err := os.ReadFile(filepath.Join(dir, p.name))
		require.NoError(t, err)
		whole := filepath.Join(t.TempDir(), p.name)
		require.NoError(t, os.WriteFile(whole, []byte(commentedKey.ReplaceAllString(string(text), "  $1")), 0o600))
		inFiles := 0
		for _, o := range p.options() {
			if o.Group != nil && o.YAML != "" {
				inFiles++
			}
		}
		for path, set := range map[string]int{filepath.Join(dir, p.name): len(p.set), whole: inFiles} {
			options := p.options()
			require.NoError(t, options.SetDefaults())
			require.NoError(t, optiontable.ApplyFile(path, options), path)
			for i := range options {
				o := &options[i]
				if o.ValueSource != serpent.ValueSourceYAML {
					continue
				}
				set--
				if want, ok := p.set[o.Flag]; ok {
					require.Equal(t, want, o.Value.String())
				} else {
					require.Equal(t, o.Default, optiontable.Shown(o), o.Flag)
				}
			}
			require.Zero(t, set, "%s: options that it lacks", path)
		}
	}
}

// commentedKey matches a key of which only the default is named.
var commentedKey = regexp.MustCompile(`(?m)^  #([a-z_]+:)`)

// exampleFile renders options as a YAML file whose keys are comments, but for those set.
func exampleFile(intro string, options serpent.OptionSet, set map[string]string) string {
	var b strings.Builder
	writeComment(&b, "", intro)
	var group *serpent.Group
	for i := range options {
		o := &options[i]
		if o.Group == nil {
			continue // --config itself
		}
		if o.Group != group {
			group = o.Group
			b.WriteString("\n")
			writeComment(&b, "", group.Description)
			fmt.Fprintf(&b, "%s:\n", group.YAML)
		}
		writeComment(&b, "  ", o.Description)
		if value, ok := set[o.Flag]; ok {
			fmt.Fprintf(&b, "  %s: %s\n", o.YAML, value)
			continue
		}
		fmt.Fprintf(&b, "  #%s: %s\n", o.YAML, exampleValue(o))
	}
	return b.String()
}

// exampleValue returns the default as a file has it.
func exampleValue(o *serpent.Option) string {
	switch o.Value.Type() {
	case "bool", optiontable.Integer, optiontable.SizeType, "duration":
		return o.Default
	case optiontable.List:
		return "[" + o.Default + "]"
	}
	if o.Default == "" {
		return `""`
	}
	return o.Default
}

// exampleVariables renders options as an environment file in which all are comments.
func exampleVariables(service string, options serpent.OptionSet) string {
	var b strings.Builder
	writeComment(&b, "", fmt.Sprintf("Variables of %[1]s.service, in the form of systemd's EnvironmentFile. They are described in %[1]s.yaml, and win over it. Only a restart reads them again.", service))
	for i := range options {
		if o := &options[i]; o.Group != nil && o.Env != "" {
			fmt.Fprintf(&b, "#%s=%s\n", o.Env, o.Default)
		}
	}
	return b.String()
}

// writeComment writes a text as lines of a comment of at most 96 characters. Lines that
// begin with a blank stay as they are.
func writeComment(b *strings.Builder, indent, text string) {
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(line, " ") || line == "" {
			b.WriteString(strings.TrimRight(indent+"# "+line, " ") + "\n")
			continue
		}
		written := indent + "#"
		for word := range strings.FieldsSeq(line) {
			if len(written)+1+len(word) > 96 {
				b.WriteString(written + "\n")
				written = indent + "#"
			}
			written += " " + word
		}
		b.WriteString(written + "\n")
	}
}
