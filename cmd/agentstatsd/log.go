package main

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/coder/agentstatsd/internal/loglimit"
)

// newLogger returns the log that c asks for, written to w.
func newLogger(w io.Writer, c *config) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.logLevel)); err != nil {
		return nil, fmt.Errorf("--log-level: %w", err)
	}
	opts := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewTextHandler(w, opts)
	if c.logFormat == "json" {
		handler = slog.NewJSONHandler(w, opts)
	}
	return slog.New(loglimit.New(handler, int(c.logMaxPerMinute))), nil
}
