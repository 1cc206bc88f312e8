// Package librarylog has libraries log to our log: without the secrets in their texts, and at
// most once a minute what they warn of.
package librarylog

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"google.golang.org/grpc/grpclog"

	"github.com/coder/agentstatsd/internal/recurring"
	"github.com/coder/agentstatsd/internal/redact"
)

// GRPC has gRPC's library log to log. It is called once, before gRPC is used.
func GRPC(log *slog.Logger) { grpclog.SetLoggerV2(newGRPC(log)) }

// grpcLog is a grpclog.LoggerV2. What the library says of its routine is for debugging, and
// so are warnings and errors of the minute after one.
type grpcLog struct {
	log              *slog.Logger
	warnings, errors recurring.Events
}

func newGRPC(log *slog.Logger) *grpcLog { return &grpcLog{log: log.With("component", "grpc")} }

// say logs a text without the secrets in it. The library quotes files.
func (g *grpcLog) say(level slog.Level, text func() string) {
	ctx := context.Background()
	if !g.log.Enabled(ctx, level) {
		return
	}
	const saying = "gRPC's library has a message"
	message := redact.Text(strings.TrimSpace(text()))
	switch level {
	case slog.LevelError:
		g.errors.Log(ctx, g.log, level, "messages", 1, saying, "message", message)
	case slog.LevelWarn:
		g.warnings.Log(ctx, g.log, level, "messages", 1, saying, "message", message)
	default:
		g.log.Log(ctx, level, saying, "message", message)
	}
}

func (g *grpcLog) print(level slog.Level, args []any) {
	g.say(level, func() string { return fmt.Sprint(args...) })
}

func (g *grpcLog) println(level slog.Level, args []any) {
	g.say(level, func() string { return fmt.Sprintln(args...) })
}

func (g *grpcLog) printf(level slog.Level, format string, args []any) {
	g.say(level, func() string { return fmt.Sprintf(format, args...) })
}

// Info implements grpclog.LoggerV2.
func (g *grpcLog) Info(args ...any) { g.print(slog.LevelDebug, args) }

// Infoln implements grpclog.LoggerV2.
func (g *grpcLog) Infoln(args ...any) { g.println(slog.LevelDebug, args) }

// Infof implements grpclog.LoggerV2.
func (g *grpcLog) Infof(format string, args ...any) { g.printf(slog.LevelDebug, format, args) }

// Warning implements grpclog.LoggerV2.
func (g *grpcLog) Warning(args ...any) { g.print(slog.LevelWarn, args) }

// Warningln implements grpclog.LoggerV2.
func (g *grpcLog) Warningln(args ...any) { g.println(slog.LevelWarn, args) }

// Warningf implements grpclog.LoggerV2.
func (g *grpcLog) Warningf(format string, args ...any) { g.printf(slog.LevelWarn, format, args) }

// Error implements grpclog.LoggerV2.
func (g *grpcLog) Error(args ...any) { g.print(slog.LevelError, args) }

// Errorln implements grpclog.LoggerV2.
func (g *grpcLog) Errorln(args ...any) { g.println(slog.LevelError, args) }

// Errorf implements grpclog.LoggerV2.
func (g *grpcLog) Errorf(format string, args ...any) { g.printf(slog.LevelError, format, args) }

// Fatal and its like end the program, as the library expects.
func (g *grpcLog) Fatal(args ...any) {
	g.print(slog.LevelError, args)
	os.Exit(1)
}

// Fatalln is as Fatal.
func (g *grpcLog) Fatalln(args ...any) {
	g.println(slog.LevelError, args)
	os.Exit(1)
}

// Fatalf is as Fatal.
func (g *grpcLog) Fatalf(format string, args ...any) {
	g.printf(slog.LevelError, format, args)
	os.Exit(1)
}

// V reports that nothing is said of single messages.
func (*grpcLog) V(int) bool { return false }
