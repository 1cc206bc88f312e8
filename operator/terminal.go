package operator

import (
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/coder/serpent"
	"golang.org/x/term"
)

// isTerminal reports whether a person sees what is written to w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// progressOf returns a function that shows what is being done, on a terminal only. Each
// call replaces what the one before has shown. It may be called concurrently.
func progressOf(inv *serpent.Invocation) func(what string) {
	if !isTerminal(inv.Stderr) {
		return func(string) {}
	}
	var mu sync.Mutex
	return func(what string) {
		mu.Lock()
		defer mu.Unlock()
		_, _ = fmt.Fprintf(inv.Stderr, "\r\x1b[K%s", shown(what)) // lost without harm
	}
}
