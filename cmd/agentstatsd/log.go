package main

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/coder/agentstatsd/internal/loglimit"
	"github.com/coder/agentstatsd/internal/logtail"
	"github.com/coder/agentstatsd/reload"
)

// newLogger returns the log that c asks for, written to w.
func newLogger(w io.Writer, c *config) (*slog.Logger, error) {
	configured, err := c.level()
	if err != nil {
		return nil, err
	}
	level := reload.NewLogLevel(configured)
	tail := logtail.New(w)
	opts := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewTextHandler(tail, opts)
	if c.logFormat == "json" {
		handler = slog.NewJSONHandler(tail, opts)
	}
	log := slog.New(&logHandler{loglimit.New(handler, int(c.logMaxPerMinute)), level, tail})
	level.LogTo(log)
	return log, nil
}

// logHandler is the handler of the whole log, with what can change of it.
type logHandler struct {
	*loglimit.Handler
	level *reload.LogLevel
	tail  *logtail.Writer
}

// logControlOf returns what can change of a log; nil: nothing can.
func logControlOf(log *slog.Logger) *logHandler {
	handler, _ := log.Handler().(*logHandler)
	return handler
}

// logTail returns the newest lines of a log; none if they are not kept.
func logTail(log *slog.Logger) []byte {
	if handler := logControlOf(log); handler != nil {
		return handler.tail.Tail()
	}
	return nil
}

// level returns the least level that is logged.
func (c *config) level() (level slog.Level, err error) {
	if err := level.UnmarshalText([]byte(c.logLevel)); err != nil {
		return level, fmt.Errorf("--log-level: %w", err)
	}
	return level, nil
}

// logOptions are what can change of a log.
type logOptions struct {
	Level     slog.Level
	PerMinute int
}

func (l *logHandler) options() any { return logOptions{l.level.Configured(), l.PerMinute()} }

func (l *logHandler) reconfigure(n *candidate) error {
	level, err := n.config.level()
	if err != nil {
		return err
	}
	l.level.Configure(level)
	l.SetPerMinute(int(n.config.logMaxPerMinute))
	return nil
}
