package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"google.golang.org/grpc/grpclog"

	"github.com/coder/agentstatsd/internal/redact"
)

// logLibraries has gRPC's library log to our log. It is called once, before gRPC is used.
func logLibraries(log *slog.Logger) { grpclog.SetLoggerV2(grpcLog{log.With("component", "grpc")}) }

// grpcLog is a grpclog.LoggerV2. What the library says of its routine is for debugging.
type grpcLog struct{ log *slog.Logger }

// say logs a text without the secrets in it. The library quotes files.
func (g grpcLog) say(level slog.Level, text func() string) {
	ctx := context.Background()
	if g.log.Enabled(ctx, level) {
		g.log.Log(ctx, level, "gRPC's library has a message", "message", redact.Text(strings.TrimSpace(text())))
	}
}

func (g grpcLog) print(level slog.Level, args []any) {
	g.say(level, func() string { return fmt.Sprint(args...) })
}

func (g grpcLog) println(level slog.Level, args []any) {
	g.say(level, func() string { return fmt.Sprintln(args...) })
}

func (g grpcLog) printf(level slog.Level, format string, args []any) {
	g.say(level, func() string { return fmt.Sprintf(format, args...) })
}

// Info and those below implement grpclog.LoggerV2.
func (g grpcLog) Info(args ...any)                    { g.print(slog.LevelDebug, args) }
func (g grpcLog) Infoln(args ...any)                  { g.println(slog.LevelDebug, args) }
func (g grpcLog) Infof(format string, args ...any)    { g.printf(slog.LevelDebug, format, args) }
func (g grpcLog) Warning(args ...any)                 { g.print(slog.LevelWarn, args) }
func (g grpcLog) Warningln(args ...any)               { g.println(slog.LevelWarn, args) }
func (g grpcLog) Warningf(format string, args ...any) { g.printf(slog.LevelWarn, format, args) }
func (g grpcLog) Error(args ...any)                   { g.print(slog.LevelError, args) }
func (g grpcLog) Errorln(args ...any)                 { g.println(slog.LevelError, args) }
func (g grpcLog) Errorf(format string, args ...any)   { g.printf(slog.LevelError, format, args) }

// Fatal and its like end the program, as the library expects.
func (g grpcLog) Fatal(args ...any) {
	g.print(slog.LevelError, args)
	os.Exit(1)
}

// Fatalln is as Fatal.
func (g grpcLog) Fatalln(args ...any) {
	g.println(slog.LevelError, args)
	os.Exit(1)
}

// Fatalf is as Fatal.
func (g grpcLog) Fatalf(format string, args ...any) {
	g.printf(slog.LevelError, format, args)
	os.Exit(1)
}

// V reports that nothing is said of single messages.
func (grpcLog) V(int) bool { return false }
