package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/coder/serpent"
	"github.com/stretchr/testify/require"
)

// documents returns what is written for those who run the program, by name.
func documents(t *testing.T) map[string]string {
	t.Helper()
	root := filepath.Join("..", "..")
	names := []string{"README.md", "CONTRIBUTING.md", "SECURITY.md", "ARCHITECTURE.md", "deploy/kubernetes/README.md"}
	pages, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	require.NoError(t, err)
	for _, page := range pages {
		names = append(names, filepath.Join("docs", filepath.Base(page)))
	}
	texts := make(map[string]string)
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		texts[name] = string(text)
	}
	return texts
}

var (
	shellBlocks = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")
	inlineCode  = regexp.MustCompile("`([^`\n]+)`")
	ourCommand  = regexp.MustCompile(`^(?:sudo )?(?:\./bin/)?(agentstatsd (?:[a-z].*|-.*))$`)
	// Texts that the program logs begin with its name, too.
	inlineCommand = regexp.MustCompile(`^agentstatsd [a-z-]+(?: -.*| [A-Z].*)?$`)
	ourOption     = regexp.MustCompile(`^--[a-z][a-z-]*(?:[= ].*)?$`)
)

// commandsOf returns the commands of the program in a text, each on one line.
func commandsOf(text string) (commands []string) {
	for _, block := range shellBlocks.FindAllStringSubmatch(text, -1) {
		for line := range strings.SplitSeq(strings.ReplaceAll(block[1], "\\\n", ""), "\n") {
			line, _, _ = strings.Cut(line, " #")
			line = strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(line), "&"))
			if c := ourCommand.FindStringSubmatch(line); c != nil {
				commands = append(commands, c[1])
			}
		}
	}
	for _, code := range inlineCode.FindAllStringSubmatch(text, -1) {
		if inlineCommand.MatchString(code[1]) {
			commands = append(commands, code[1])
		}
	}
	return commands
}

// The program has each command that the documents name, with its options, and takes
// their values.
func TestDocumentedCommands(t *testing.T) {
	found := 0
	for name, text := range documents(t) {
		for _, line := range commandsOf(text) {
			found++
			requireCommand(t, strings.Fields(line), name+": "+line)
		}
	}
	require.GreaterOrEqual(t, found, 20)
}

// requireCommand fails unless the program takes words, the first of which is its name.
// Words with $ or ... stand for others.
func requireCommand(t *testing.T, words []string, line string) {
	t.Helper()
	command := rootCommand()
	if len(words) > 1 && !strings.HasPrefix(words[1], "-") {
		i := slices.IndexFunc(command.Children, func(c *serpent.Command) bool { return c.Name() == words[1] })
		require.NotEqual(t, -1, i, "no command: %s", line)
		command, words = command.Children[i], words[1:]
	}
	for i := 1; i < len(words); i++ {
		name, value, valued := strings.Cut(words[i], "=")
		if !strings.HasPrefix(name, "--") || name == "--help" {
			continue
		}
		o := command.Options.ByFlag(strings.TrimPrefix(name, "--"))
		require.NotNil(t, o, "no option %s: %s", name, line)
		switch {
		case valued:
		case o.Value.Type() == "bool":
			value = "true"
		default:
			if i++; i == len(words) {
				return // as where a text names a command by one option
			}
			value = words[i]
		}
		if !strings.ContainsAny(value, "$") && value != "..." {
			require.NoError(t, o.Value.Set(strings.Trim(value, `"'`)), "%s: %s", name, line)
		}
	}
}

// ofCoder are options of coder's commands that texts name.
var ofCoder = []string{"--lifetime", "--login-type", "--service-account"}

// Each option that a text names by itself exists.
func TestDocumentedOptions(t *testing.T) {
	known := make(map[string]bool)
	for _, command := range rootCommand().Children {
		for _, o := range command.Options {
			known["--"+o.Flag] = true
		}
	}
	found := 0
	for name, text := range documents(t) {
		for _, code := range inlineCode.FindAllStringSubmatch(text, -1) {
			if !ourOption.MatchString(code[1]) {
				continue
			}
			found++
			option := strings.FieldsFunc(code[1], func(r rune) bool { return r == '=' || r == ' ' })[0]
			require.True(t, known[option] || slices.Contains(ofCoder, option), "%s: no option %s", name, option)
		}
	}
	require.Greater(t, found, 200)
}
