package store

import (
	"database/sql"
	"fmt"
	"math"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// The first and last moment that nanoseconds since 1970 can express.
var (
	minTime = time.Unix(0, math.MinInt64)
	maxTime = time.Unix(0, math.MaxInt64)
)

// nanos is a time as a column: nanoseconds since 1970, NULL if it is zero. A
// time before 1677 or after 2262 does not fit and wraps agent.ErrRejected.
func nanos(t time.Time) (sql.NullInt64, error) {
	switch {
	case t.IsZero():
		return sql.NullInt64{}, nil
	case t.Before(minTime), t.After(maxTime):
		return sql.NullInt64{}, fmt.Errorf("%w: time %v is out of range", agent.ErrRejected, t)
	}
	return sql.NullInt64{Int64: t.UnixNano(), Valid: true}, nil
}

// fromNanos is the inverse of nanos, in UTC.
func fromNanos(n sql.NullInt64) time.Time {
	if !n.Valid {
		return time.Time{}
	}
	return time.Unix(0, n.Int64).UTC()
}
