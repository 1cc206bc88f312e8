package reload

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// MaxLogLevelTime bounds the time for which a level may differ from the configured one.
const MaxLogLevelTime = 24 * time.Hour

// LogLevel is the least level that is logged. It can be another one for a while.
type LogLevel struct {
	now atomic.Int64

	log *slog.Logger // nil: changes are not logged

	mu sync.Mutex
	// Guarded by mu. configured is the level but for that while, which timer ends.
	configured slog.Level
	timer      *time.Timer // nil: it is the configured one
}

// NewLogLevel returns a level.
func NewLogLevel(configured slog.Level) *LogLevel {
	l := &LogLevel{configured: configured}
	l.now.Store(int64(configured))
	return l
}

// Level implements slog.Leveler.
func (l *LogLevel) Level() slog.Level { return slog.Level(l.now.Load()) }

// Configure changes the configured level. Another one for a while goes on.
func (l *LogLevel) Configure(configured slog.Level) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.configured = configured
	if l.timer == nil {
		l.now.Store(int64(configured))
	}
}

// Configured returns the configured level.
func (l *LogLevel) Configured() slog.Level {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.configured
}

// SetFor makes the level another one for some time, then the configured one again.
func (l *LogLevel) SetFor(level slog.Level, within time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
	}
	l.now.Store(int64(level))
	var timer *time.Timer
	timer = time.AfterFunc(within, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.timer == timer { // else there was another call
			l.timer = nil
			l.now.Store(int64(l.configured))
		}
	})
	l.timer = timer
}

// LogTo has changes by ServeHTTP logged. It is called before the first one.
func (l *LogLevel) LogTo(log *slog.Logger) { l.log = log }

// announce is SetFor with a line in the log, at a level that is logged before or after it.
func (l *LogLevel) announce(ctx context.Context, level slog.Level, within time.Duration) {
	said := max(slog.LevelInfo, min(l.Level(), level))
	before := l.Level() < level
	say := func() {
		if l.log != nil {
			l.log.Log(ctx, said, "the level of the log is another one for a while", "log_level", level, "for", within, "then", l.Configured())
		}
	}
	if before {
		say()
	}
	l.SetFor(level, within)
	if !before {
		say()
	}
}

// LevelChange is the answer of ServeHTTP.
type LevelChange struct {
	Level string    `json:"level"`
	Until time.Time `json:"until"`
	// Configured is the level after that.
	Configured string `json:"configured"`
}

// ServeHTTP implements http.Handler. It sets the level of the query for the time of the
// query: level=debug&for=10m.
func (l *LogLevel) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(r.URL.Query().Get("level"))); err != nil {
		http.Error(w, "level: want debug, info, warn or error", http.StatusBadRequest)
		return
	}
	within, err := time.ParseDuration(r.URL.Query().Get("for"))
	if err != nil || within <= 0 || within > MaxLogLevelTime {
		http.Error(w, fmt.Sprintf("for: want a time such as 10m, at most %s", MaxLogLevelTime), http.StatusBadRequest)
		return
	}
	l.announce(r.Context(), level, within)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(LevelChange{level.String(), time.Now().Add(within).UTC(), l.Configured().String()})
}
