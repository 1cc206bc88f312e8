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
	"strings"
	"syscall"

	"github.com/coder/serpent"

	"github.com/coder/agentstatsd/internal/redact"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	err := rootCommand().Invoke(os.Args[1:]...).WithContext(ctx).WithOS().Run()
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "error: %s\n", userError(err))
		os.Exit(1)
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
			return serpent.DefaultHelpFn()(inv)
		},
	}
	root.AddSubcommands(serveCommand(), bridgeCommand(), allInOneCommand(), demoCommand(), simulateCommand(),
		backupCommand(), restoreCommand(), migrateCommand(), versionCommand())
	return root
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

// noArguments refuses arguments that are no flags. They are not repeated: what
// stands there by mistake can be a password.
func noArguments(next serpent.HandlerFunc) serpent.HandlerFunc {
	return func(inv *serpent.Invocation) error {
		if n := len(inv.Args); n > 0 {
			return fmt.Errorf("%s takes flags only, got %d other arguments: see --help", inv.Command.Name(), n)
		}
		return next(inv)
	}
}

// userError returns the text of err for the user: without the arguments that
// serpent repeats when it cannot parse them, and without passwords.
func userError(err error) string {
	return redact.Text(repeatedArgument.ReplaceAllString(plainError(err), "${1}"))
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
		Middleware: noArguments,
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
