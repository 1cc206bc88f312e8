package postgrestest

import (
	"fmt"
	"sync"
	"testing"
)

// Template is a database of the shared server that is filled once and copied for each
// test. A copy takes a tenth of the time of a migration.
type Template struct {
	fill func(url string) error

	once sync.Once
	name string
	err  error
}

// NewTemplate returns a template that fill fills when it is first copied. fill must
// have closed its connections when it returns.
func NewTemplate(fill func(url string) error) *Template { return &Template{fill: fill} }

// Copy makes a copy on the shared server, which is dropped when the test ends, and
// returns its URL. In the short mode of go test it skips the test.
func (t *Template) Copy(tb testing.TB) string {
	tb.Helper()
	s := Shared(tb)
	t.once.Do(func() {
		t.name = fmt.Sprintf("template_%d", s.created.Add(1))
		if t.err = s.exec("CREATE DATABASE " + t.name); t.err == nil {
			t.err = t.fill(s.url(t.name))
		}
	})
	if t.err != nil {
		tb.Fatalf("fill template database: %v", t.err)
	}
	return s.createDatabase(tb, t.name)
}
