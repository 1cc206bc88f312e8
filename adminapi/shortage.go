package adminapi

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// nearlyAllFiles is the part of the files that may be open from which on a warning says so.
	nearlyAllFiles = 0.9
	// shortageShown is how long after it a shortage of descriptors is a warning.
	shortageShown = time.Hour
)

// shortages remembers when listeners had no descriptors for connections. The zero value is
// ready.
type shortages struct {
	mu sync.Mutex
	of map[string]shortage // by listener
}

type shortage struct {
	errors float64   // so far
	at     time.Time // when they last rose, as far as it was looked
}

// add notes the errors so far.
func (s *shortages) add(now time.Time, g gathered) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = make(map[string]shortage)
	}
	for _, m := range g["agentstatsd_accept_errors_total"].GetMetric() {
		listener := labelOf(m, "listener")
		if n := valueOf(m); labelOf(m, "reason") == "descriptors" && n > s.of[listener].errors {
			s.of[listener] = shortage{n, now}
		}
	}
}

// warnings returns who is or was short of descriptors, in the order of the listeners.
func (s *shortages) warnings(now time.Time, g gathered) (all []string) {
	const remedy = "raise the limit of open files (ulimit -n, LimitNOFILE of systemd), or find who holds connections"
	if open, most := g.value("process_open_fds"), g.value("process_max_fds"); most > 0 && open >= nearlyAllFiles*most {
		all = append(all, fmt.Sprintf("descriptors: %.0f of %.0f are used: %s", open, most, remedy))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, listener := range slices.Sorted(maps.Keys(s.of)) {
		if last := s.of[listener]; now.Sub(last.at) < shortageShown {
			all = append(all, fmt.Sprintf("descriptors: the listener %s could not accept connections, %.0f times since the start, the last at %s, as the process may open %.0f files: %s",
				listener, last.errors, last.at.UTC().Format(time.RFC3339), g.value("process_max_fds"), remedy))
		}
	}
	return all
}
