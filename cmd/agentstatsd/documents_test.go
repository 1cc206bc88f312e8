package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/coder/serpent"
	"github.com/stretchr/testify/require"
)

// root is the directory of the repository.
var root = filepath.Join("..", "..")

// documents returns what is written for those who run the program, by name.
func documents(t *testing.T) map[string]string {
	t.Helper()
	texts := make(map[string]string)
	add := func(name string) {
		text, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		texts[name] = string(text)
	}
	for _, name := range []string{"README.md", "RELEASE.md", "CONTRIBUTING.md", "SECURITY.md", "ARCHITECTURE.md"} {
		add(name)
	}
	for _, dir := range []string{"docs", "deploy", "examples"} {
		require.NoError(t, fs.WalkDir(os.DirFS(root), dir, func(name string, _ fs.DirEntry, err error) error {
			if strings.HasSuffix(name, ".md") {
				add(name)
			}
			return err
		}))
	}
	return texts
}

var (
	fence      = regexp.MustCompile("(?ms)^ *```([a-z]*)\n(.*?)^ *```$")
	indented   = regexp.MustCompile(`(?m)^    [a-z].*$`)
	inlineCode = regexp.MustCompile("`([^`\n]+)`")
	comment    = regexp.MustCompile(`(^|\s+)#( .*)?$`)
	setting    = regexp.MustCompile(`^[A-Z_]+=[^ ]*$`)
	// Texts that the program logs begin with its name, too.
	inlineCommand = regexp.MustCompile(`^agentstatsd [a-z-]+(?: -.*| [A-Z].*)?$`)
	ourCommand    = regexp.MustCompile(`^(?:sudo (?:-u \S+ )?)?(?:\./bin/)?(agentstatsd (?:[a-z].*|-.*))$`)
	ourOption     = regexp.MustCompile(`^--[a-z][a-z-]*(?:[= ].*)?$`)
)

// shellBlocks returns what a text has for a shell.
func shellBlocks(text string) (blocks []string) {
	for _, block := range fence.FindAllStringSubmatch(text, -1) {
		switch block[1] {
		case "sh":
			blocks = append(blocks, block[2])
		case "console":
			var typed strings.Builder
			for line := range strings.Lines(block[2]) {
				if line, ok := strings.CutPrefix(line, "$ "); ok {
					typed.WriteString(line)
				}
			}
			blocks = append(blocks, typed.String())
		}
	}
	return blocks
}

// commandsOf returns the commands in a text, each on one line. Of the program's own, within
// sentences, it returns those that are named with an option, as mentions.
func commandsOf(text string) (commands, mentions []string) {
	add := func(line string) {
		line = comment.ReplaceAllString(strings.TrimSpace(line), "")
		line = strings.Join(strings.Fields(strings.TrimSuffix(line, "&")), " ")
		if line != "" && !setting.MatchString(line) && !slices.Contains(commands, line) {
			commands = append(commands, line)
		}
	}
	for _, block := range shellBlocks(text) {
		for line := range strings.Lines(strings.ReplaceAll(block, "\\\n", "")) {
			add(line)
		}
	}
	text = fence.ReplaceAllString(text, "")
	for _, line := range indented.FindAllString(text, -1) {
		if programOf(line) != "" {
			add(line)
		}
	}
	var names []string
	for _, c := range rootCommand().Children {
		names = append(names, c.Name())
	}
	for _, code := range inlineCode.FindAllStringSubmatch(text, -1) {
		words := strings.Fields(code[1])
		switch {
		case inlineCommand.MatchString(code[1]):
			mentions = append(mentions, code[1])
		case len(words) > 1 && slices.Contains(names, words[0]) && strings.HasPrefix(words[1], "--"):
			mentions = append(mentions, "agentstatsd "+code[1])
		case len(words) > 1 && programOf(code[1]) != "":
			add(code[1])
		}
	}
	return commands, mentions
}

// The program has each command that the documents name, with its options, and takes
// their values. The shell takes each block.
func TestDocumentedCommands(t *testing.T) {
	found := 0
	for name, text := range documents(t) {
		commands, mentions := commandsOf(text)
		for _, line := range append(commands, mentions...) {
			if c := ourCommand.FindStringSubmatch(line); c != nil {
				found++
				requireCommand(t, strings.Fields(c[1]), name+": "+line)
			}
		}
		for _, block := range shellBlocks(text) {
			requireShell(t, name, block)
		}
	}
	require.GreaterOrEqual(t, found, 20)
}

// requireCommand fails unless the program takes words, the first of which is its name.
// Words with $ or ... stand for others. What follows a pipe is of another program.
func requireCommand(t *testing.T, words []string, line string) {
	t.Helper()
	command := rootCommand()
	if i := slices.Index(words, "|"); i >= 0 {
		words = words[:i]
	}
	if len(words) > 1 && !strings.HasPrefix(words[1], "-") && words[1] != "..." {
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
