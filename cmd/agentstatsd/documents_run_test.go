package main

import (
	"fmt"
	"iter"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// notRun are programs whose commands no test runs, and what is looked at instead.
var notRun = map[string]struct {
	reason string
	check  func(t *testing.T, document, line string)
}{
	"make":     {"it runs these tests, or takes as long as they do", requireTarget},
	"go":       {"it takes modules from the network, or as long as a benchmark does", requireGo},
	"kubectl":  {"it needs a cluster", requireManifests},
	"helm":     {"it needs a cluster; tests of deploy/helm render what it would", requireChart},
	"docker":   {"it needs a daemon", requireDockerfile},
	"sudo":     {"it changes the machine", nil},
	"coder":    {"it needs a Coder, whose program it is", nil},
	"buf":      {"make lint runs it", nil},
	"htpasswd": {"it is of a package that need not be there", nil},
}

// runElsewhere are commands that tests run which find them in the documents themselves.
var runElsewhere = []struct{ begin, test string }{
	{"pg_dump ", "TestPostgresBackup"},
	{"pg_restore ", "TestPostgresBackup"},
	{"agentstatsd serve --database-url postgres://agentstatsd@db/agentstatsd", "TestDocumentedReplicas"},
	{"(umask 077 && openssl rand -hex 32 > coderd-token", "TestComposeRuns"},
	{"echo CODER_ACCESS_URL=", "TestComposeRuns"},
	{"(umask 077 && ", "TestDocumentedReplicas"},
	{"export AGENTSTATSD_DATABASE_URL=", "TestDocumentedReplicas"},
	{"agentstatsd serve --data-dir one", "TestDocumentedReplicas"},
	{"agentstatsd serve --data-dir two", "TestDocumentedReplicas"},
	{"agentstatsd simulate --target localhost:2113,localhost:2115", "TestDocumentedReplicas"},
	{"kill -9", "TestCrashes"},
	{"systemctl status agentstatsd", "TestInstalled"},
	{"curl -s localhost:2122/-/ready", "TestInstalled"},
	{"curl -s localhost:2115/-/ready", "TestInstalled"},
}

// others are programs of which a text within a sentence is a command, beside notRun.
var others = []string{"cd", "curl", "kill", "openssl", "pg_dump", "pg_restore"}

// programOf returns the program that a line runs, if the tests know it.
func programOf(line string) string {
	words := strings.Fields(line)
	if len(words) > 3 && words[0] == "cd" && words[2] == "&&" {
		words = words[3:]
	}
	if _, ok := notRun[words[0]]; ok || slices.Contains(others, words[0]) {
		return words[0]
	}
	return ""
}

// docLine is a line of a script that takes a command from a document.
var docLine = regexp.MustCompile(`^doc [a-z]+ (\S+) '((?:[^']|'')*)'`)

// Each command of the documents is run by a script or a test, or is of a program that a
// machine need not have. Each option that a text names with its command is one that a
// script, or a test, gives that command.
func TestDocumentedCommandsAreRun(t *testing.T) {
	texts := documents(t)
	run := make(map[string]bool) // document, command
	lines := testLines(t)
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	require.NoError(t, err)
	for _, script := range scripts {
		text, err := os.ReadFile(script)
		require.NoError(t, err)
		for line := range strings.Lines(string(text)) {
			if d := docLine.FindStringSubmatch(line); d != nil {
				command, err := documentedCommand(texts[d[1]], strings.ReplaceAll(d[2], "''", "'"))
				require.NoError(t, err, "%s: %s", script, line)
				run[d[1]+": "+command] = true
				line = command
			}
			if strings.HasPrefix(line, "runbooks") {
				for name, command := range runbookCommands(texts) {
					run[name+": "+command] = true
					lines = append(lines, command)
				}
			}
			lines = append(lines, line)
		}
	}
	usedRows := make(map[string]bool)
	for name, text := range texts {
		commands, mentions := commandsOf(text)
		for _, command := range commands {
			if run[name+": "+command] {
				continue
			}
			if i := slices.IndexFunc(runElsewhere, func(r struct{ begin, test string }) bool { return strings.HasPrefix(command, r.begin) }); i >= 0 {
				usedRows[runElsewhere[i].begin] = true
				requireTest(t, runElsewhere[i].test)
				continue
			}
			program := programOf(command)
			row, ok := notRun[program]
			if !assert.True(t, ok, "%s: no test runs\n%s\nGive it a line `doc` in a script of testdata/script.", name, command) {
				continue
			}
			usedRows[program] = true
			if row.check != nil {
				row.check(t, text, command)
			}
		}
		for _, mention := range mentions {
			words := strings.Fields(mention)
			requireLine(t, lines, words[1], name)
			for _, option := range words[2:] {
				if option, _, _ := strings.Cut(option, "="); strings.HasPrefix(option, "--") {
					requireLine(t, lines, words[1]+`\b.*[ "]`+option, name)
				}
			}
		}
	}
	for _, row := range runElsewhere {
		require.True(t, usedRows[row.begin], "no document has the command %s", row.begin)
	}
	for program := range notRun {
		require.True(t, usedRows[program], "no document has a command of %s", program)
	}
}

// testLines returns the calls in integration, each on one line, in which tests run the
// program.
func testLines(t *testing.T) (lines []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "integration", "*_test.go"))
	require.NoError(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		calls := strings.NewReplacer(",\n", ", ", "startSimulation(", "simulate ", "runSimulation(", "simulate ", ".simulate(", " simulate ").Replace(string(text))
		lines = append(lines, strings.Split(calls, "\n")...)
	}
	return lines
}

// requireLine fails unless a test has the program do what a document names.
func requireLine(t *testing.T, lines []string, pattern, document string) {
	t.Helper()
	compiled := regexp.MustCompile(`\b` + pattern + `\b`)
	require.True(t, slices.ContainsFunc(lines, compiled.MatchString), "%s: no test runs %s", document, pattern)
}

// documentedCommand returns the command in a text that begins so.
func documentedCommand(text, begin string) (string, error) {
	commands, _ := commandsOf(text)
	if slices.Contains(commands, begin) {
		return begin, nil
	}
	var found []string
	for _, c := range commands {
		if strings.HasPrefix(c, begin) {
			found = append(found, c)
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("want one command that begins with %q, got %q", begin, found)
	}
	return found[0], nil
}

// ports are those of the documents, and which variable of a script has the address that a
// test listens on instead.
var ports = map[string]string{"2112": "HTTP", "2113": "GRPC", "2114": "BRIDGE", "2122": "HTTP"}

var (
	documentedPort = regexp.MustCompile(` ?:(2112|2113|2114|2122)\b`)
	program        = regexp.MustCompile(`^(?:\./bin/)?agentstatsd [^|]*$`)
)

// doc NAME FILE BEGIN [OLD=>NEW]... writes the command of a document that begins so to
// NAME.sh, with the addresses of this test. A command of the program takes the place of
// the shell, with its process id in NAME.pid.
func doc(t *testing.T) func(ts *testscript.TestScript, neg bool, args []string) {
	texts := documents(t)
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) < 3 {
			ts.Fatalf("usage: doc NAME FILE BEGIN [OLD=>NEW]...")
		}
		line, err := documentedCommand(texts[args[1]], args[2])
		ts.Check(err)
		for _, change := range args[3:] {
			before, after, ok := strings.Cut(change, "=>")
			if !ok || !strings.Contains(line, before) {
				ts.Fatalf("%q is not in %s", before, line)
			}
			line = strings.ReplaceAll(line, before, after)
		}
		line = withAddresses(ts, line)
		if program.MatchString(line) {
			line = fmt.Sprintf("echo $$ >%s.pid\nexec %s", args[0], line)
		}
		ts.Check(os.WriteFile(ts.MkAbs(args[0]+".sh"), []byte(line+"\n"), 0o600))
	}
}

// runbookCommands returns the commands of docs/runbooks that ask a service, by document and
// in order.
func runbookCommands(texts map[string]string) iter.Seq2[string, string] {
	return func(yield func(document, command string) bool) {
		for _, name := range slices.Sorted(maps.Keys(texts)) {
			if !strings.HasPrefix(name, "docs/runbooks/") {
				continue
			}
			commands, _ := commandsOf(texts[name])
			for _, command := range commands {
				asks := strings.HasPrefix(command, "agentstatsd ") || strings.HasPrefix(command, "curl ")
				if asks && !yield(name, command) {
					return
				}
			}
		}
	}
}

// runbooks [OLD=>NEW]... runs each command of docs/runbooks, with the addresses of this test,
// where OLD stands with NEW. Each of them succeeds.
func runbooks(t *testing.T) func(ts *testscript.TestScript, neg bool, args []string) {
	texts := documents(t)
	return func(ts *testscript.TestScript, _ bool, args []string) {
		done := make(map[string]bool)
		for name, line := range runbookCommands(texts) {
			for _, change := range args {
				before, after, ok := strings.Cut(change, "=>")
				if !ok {
					ts.Fatalf("usage: runbooks [OLD=>NEW]...")
				}
				line = strings.ReplaceAll(line, before, after)
			}
			line = withAddresses(ts, line)
			if done[line] {
				continue
			}
			done[line] = true
			if err := ts.Exec("sh", "-c", line); err != nil {
				ts.Fatalf("%s: %s: %v", name, line, err)
			}
		}
	}
}

// withAddresses returns a command with the addresses of this test.
func withAddresses(ts *testscript.TestScript, line string) string {
	return documentedPort.ReplaceAllStringFunc(line, func(match string) string {
		host, port, _ := strings.Cut(match, ":")
		_, own, _ := strings.Cut(ts.Getenv(ports[port]), ":")
		if host == " " { // of all interfaces
			host = " 127.0.0.1"
		}
		return host + ":" + own
	})
}

// requireShell fails unless the shell can read a block.
func requireShell(t *testing.T, name, block string) {
	t.Helper()
	cmd := exec.Command("sh", "-n")
	cmd.Stdin = strings.NewReader(block)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s: %s\n%s", name, block, out)
}

// requireTest fails unless the module integration has a test.
func requireTest(t *testing.T, name string) {
	t.Helper()
	requireText(t, "integration/*_test.go deploy/packages/*_test.go", "\nfunc "+name+"(")
}

// requireText fails unless a file whose name is as one of the patterns has a text.
func requireText(t *testing.T, pattern, want string) {
	t.Helper()
	for one := range strings.FieldsSeq(pattern) {
		files, err := filepath.Glob(filepath.Join(root, one))
		require.NoError(t, err)
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			if strings.Contains(string(text), want) {
				return
			}
		}
	}
	require.Fail(t, "no "+pattern+" has "+want)
}

func requireTarget(t *testing.T, _, line string) {
	t.Helper()
	for _, word := range strings.Fields(line)[1:] {
		if word != "&&" && !strings.Contains(word, "=") {
			requireText(t, "Makefile", "\n"+word+":")
		}
	}
}

// requireGo looks for the directories, tests and benchmarks that a line names.
func requireGo(t *testing.T, _, line string) {
	t.Helper()
	words, dir := strings.Fields(line), ""
	if words[0] == "cd" {
		dir = words[1]
	}
	for _, word := range words {
		if strings.HasPrefix(word, "./") {
			dir = filepath.Join(dir, word)
		}
	}
	require.DirExists(t, filepath.Join(root, dir), line)
	for i, word := range words {
		kind := map[string]string{"-run": "Test", "-bench": "Benchmark"}[word]
		if kind == "" || words[i+1] == "'^$'" || words[i+1] == "TestName" {
			continue
		}
		for name := range strings.SplitSeq(strings.Trim(words[i+1], "'"), "|") {
			requireText(t, filepath.Join(dir, "*_test.go"), "\nfunc "+kind+strings.TrimPrefix(name, kind))
		}
	}
}

// requireManifests looks for what a line applies, and for what it names, in a document or
// in the manifests.
func requireManifests(t *testing.T, document, line string) {
	t.Helper()
	words := strings.Fields(line)
	for i, word := range words {
		if word == "-f" && strings.Contains(words[i+1], "/") {
			require.FileExists(t, filepath.Join(root, words[i+1]), line)
		}
		if kind, name, ok := strings.Cut(word, "/"); ok && (kind == "deployment" || kind == "statefulset") && name != "coder" && !strings.Contains(document, "\n  name: "+name+"\n") {
			requireText(t, "deploy/kubernetes/*.yaml", "\nkind: "+map[string]string{"deployment": "Deployment", "statefulset": "StatefulSet"}[kind]+"\nmetadata:\n  name: "+name+"\n")
		}
		if kind := slices.Index(words, "secret"); kind >= 0 && i == kind+2 && !strings.Contains(document, "secretName: "+word) {
			require.Regexp(t, `(?m)^ +(secretName|name): `+word+`$`, textOf(t, "deploy/kubernetes/*.yaml"), line)
		}
	}
}

// requireChart looks for the chart and the files of values that a line names.
func requireChart(t *testing.T, _, line string) {
	t.Helper()
	words := strings.Fields(line)
	for i, word := range words {
		switch {
		case word == "-f" || word == "--values":
			require.FileExists(t, filepath.Join(root, words[i+1]), line)
		case strings.HasPrefix(word, "deploy/"):
			require.FileExists(t, filepath.Join(root, word, "Chart.yaml"), line)
		}
	}
}

// textOf returns the text of all files whose names are as pattern.
func textOf(t *testing.T, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, pattern))
	require.NoError(t, err)
	var b strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		b.Write(text)
	}
	return b.String()
}

func requireDockerfile(t *testing.T, _, line string) {
	t.Helper()
	words := strings.Fields(line)
	if i := slices.Index(words, "-f"); i >= 0 {
		require.FileExists(t, filepath.Join(root, words[i+1]), line)
	}
}
