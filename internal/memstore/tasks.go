package memstore

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// maxTasks is that of store.Store.
const maxTasks = 10_000

// task is who has one, until when.
type task struct {
	holder agent.ID
	until  time.Time
}

// AcquireTasks is as in store.Store.
func (s *Store) AcquireTasks(ctx context.Context, holder agent.ID, names []string, prefix string, d time.Duration) (granted []string, counted int, err error) {
	err = s.runEach(ctx, func() (transaction, func()) {
		var mine []string
		var of int
		return transaction{doing: "acquire tasks", apply: func(t *tables, _ int64) error {
			now := time.Now()
			mine, of = nil, 0
			for name, has := range t.tasks {
				if !has.until.After(now) {
					delete(t.tasks, name)
				}
			}
			more := 0
			for _, name := range names {
				if _, taken := t.tasks[name]; !taken && d > 0 {
					more++
				}
			}
			if len(t.tasks)+more > maxTasks {
				return fmt.Errorf("acquire tasks: %w: want at most %d at once", agent.ErrTooMany, maxTasks)
			}
			for _, name := range names {
				has, taken := t.tasks[name]
				switch {
				case taken && has.holder != holder:
				case d == 0:
					delete(t.tasks, name)
				default:
					t.tasks[name] = task{holder, now.Add(d)}
					mine = append(mine, name)
				}
			}
			for name := range t.tasks {
				if prefix != "" && d > 0 && strings.HasPrefix(name, prefix) {
					of++
				}
			}
			return nil
		}}, func() { granted, counted = mine, of }
	})
	if err != nil {
		return nil, 0, err
	}
	return granted, counted, nil
}
