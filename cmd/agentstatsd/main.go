// Agentstatsd takes the telemetry of workspace agents off coderd: agents stream
// stats and metadata to it, Prometheus scrapes it, coderd dials it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/coder/serpent"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	err := rootCommand().Invoke(os.Args[1:]...).WithContext(ctx).WithOS().Run()
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(1)
	}
}

func rootCommand() *serpent.Command {
	root := &serpent.Command{
		Use:   "agentstatsd",
		Short: "Takes in the telemetry of Coder's workspace agents and serves it to Prometheus.",
		Long: "Start here:\n\n" +
			"  agentstatsd demo     the service and 25 simulated agents, in one process\n" +
			"  agentstatsd serve    the service",
		Handler: serpent.DefaultHelpFn(),
	}
	root.AddSubcommands(serveCommand(), demoCommand(), simulateCommand(), versionCommand())
	return root
}

func versionCommand() *serpent.Command {
	return &serpent.Command{
		Use:        "version",
		Short:      "Print the version.",
		Middleware: serpent.RequireNArgs(0),
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
