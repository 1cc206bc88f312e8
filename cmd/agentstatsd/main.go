// Agentstatsd takes the telemetry of workspace agents off coderd: agents stream
// stats and metadata to it, Prometheus scrapes it, coderd dials it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	_ "time/tzdata" // an image has no files of time zones

	"github.com/coder/serpent"
	"github.com/coder/serpent/completion"

	"github.com/coder/agentstatsd/cmd/agentstatsd/internal/simulation"
	"github.com/coder/agentstatsd/internal/redact"
	"github.com/coder/agentstatsd/operator"
	"github.com/coder/agentstatsd/optiontable"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	inv := rootCommand().Invoke().WithContext(ctx).WithOS()
	inv.Args = usualArguments(inv.Args)
	err := inv.Run()
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "error: %s\n", userError(err))
		os.Exit(operator.ExitCode(err))
	}
}

func rootCommand() *serpent.Command {
	root := &serpent.Command{
		Use:   "agentstatsd",
		Short: "Takes in the telemetry of Coder's workspace agents and serves it to Prometheus.",
		Long: "Start here:\n\n" +
			"  agentstatsd demo         the service and 25 simulated agents, in one process\n" +
			"  agentstatsd serve        the service\n" +
			"  agentstatsd bridge       what has a stock coderd's agents served by it\n" +
			"  agentstatsd all-in-one   both in one process",
		Handler: func(inv *serpent.Invocation) error {
			if len(inv.Args) > 0 {
				return unknownCommand(inv.Args[0])
			}
			return inv.Command.HelpHandler(inv)
		},
	}
	// The order is that of the help.
	root.AddSubcommands(serveCommand(), bridgeCommand(), allInOneCommand(), demoCommand(), simulation.Command())
	root.AddSubcommands(operator.Commands()...)
	root.AddSubcommands(checkCommand(), logLevelCommand(), backupCommand(), restoreCommand(), migrateCommand(), manCommand(), completionCommand(), versionCommand())
	optiontable.SetHelp(root)
	return root
}

// usualArguments returns the arguments in serpent's form: "help serve" is "serve --help",
// and --version is a command.
func usualArguments(args []string) []string {
	if len(args) == 0 {
		return args
	}
	switch args[0] {
	case "help":
		return append(slices.Clone(args[1:]), "--help")
	case "--version", "-v":
		return append([]string{"version"}, args[1:]...)
	}
	return args
}

func manCommand() *serpent.Command {
	return &serpent.Command{
		Use:        "man",
		Short:      "Print the manual page: agentstatsd man | man -l -",
		Middleware: optiontable.NoArguments,
		// Of a command that does not run: serpent sorts the options of one that does.
		Handler: func(inv *serpent.Invocation) error { return optiontable.Man(inv.Stdout, rootCommand(), version()) },
	}
}

func completionCommand() *serpent.Command {
	return &serpent.Command{
		Use:        "completion <shell>",
		Short:      "Print the completion of a shell: bash, fish, zsh or powershell.",
		Long:       "For bash:\n\n  source <(agentstatsd completion bash)",
		Middleware: serpent.RequireNArgs(1),
		Handler: func(inv *serpent.Invocation) error {
			shell, err := completion.ShellByName(inv.Args[0], "agentstatsd")
			if err != nil {
				return fmt.Errorf("want bash, fish, zsh or powershell: %w", err)
			}
			return shell.WriteCompletion(inv.Stdout)
		},
	}
}

// repeatedArgument matches an argument that an error repeats: it may be a password.
var repeatedArgument = regexp.MustCompile(`((?:unknown shorthand flag: '.'|bad flag syntax)).+`)

// commandName matches what may be a command that is misspelt, but no token.
var commandName = regexp.MustCompile(`^[a-z-]{1,16}$`)

// unknownCommand returns the error of an argument that is no command.
func unknownCommand(name string) error {
	if !commandName.MatchString(name) {
		return errors.New("the first argument is no command: see --help")
	}
	return fmt.Errorf("there is no command %q: see --help", name)
}

// userError returns the text of err for the user: without the arguments that
// serpent repeats when it cannot parse them, and without passwords.
func userError(err error) string {
	return redact.Text(optiontable.PlainText(repeatedArgument.ReplaceAllString(plainError(err), "${1}")))
}

// plainError returns err's text without what serpent wraps around it, a line for
// each error.
func plainError(err error) string {
	var all []error
	switch e := err.(type) { //nolint:errorlint // each layer is looked at on its own
	case *serpent.RunCommandError:
		return plainError(e.Err)
	case interface{ WrappedErrors() []error }: // of the environment
		all = e.WrappedErrors()
	case interface{ Unwrap() []error }:
		all = e.Unwrap()
	default:
		text := err.Error()
		if cause := errors.Unwrap(err); cause != nil && (strings.HasPrefix(text, "parsing flags (") || strings.HasPrefix(text, "parsing env: ")) {
			return plainError(cause)
		}
		return text
	}
	lines := make([]string, len(all))
	for i, e := range all {
		lines[i] = plainError(e)
	}
	return strings.Join(lines, "\n")
}

func versionCommand() *serpent.Command {
	return &serpent.Command{
		Use:        "version",
		Short:      "Print the version.",
		Middleware: optiontable.NoArguments,
		Handler: func(inv *serpent.Invocation) error {
			_, err := fmt.Fprintf(inv.Stdout, "agentstatsd %s, %s, %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// release is set by the linker: -X main.release=v1.2.3.
var release string

// version returns the release, or what Go knows of the build.
func version() string {
	if release != "" {
		return release
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(unknown)"
}
