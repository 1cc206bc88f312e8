package stream

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"path"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"time"
)

// LockWait is a class of waits for locks: those that ended at one place.
type LockWait struct {
	// Where a lock was let go that others waited for.
	Where string
	// Own reports whether that is code of the service, not of a library.
	Own   bool
	Waits int64
	// MeanMS is the mean wait. AtMostMS bounds the longest one: it is the sum of
	// those that ended within one window.
	MeanMS, AtMostMS float64
}

// lockWindow is short, as what a window sums up stands for its longest wait.
const lockWindow = 20 * time.Millisecond

// recordLocks has every wait for a lock recorded.
func recordLocks() { runtime.SetMutexProfileFraction(1) }

// lockWatch looks at the profile of locks again and again.
type lockWatch struct {
	stopped chan struct{}
	ended   sync.WaitGroup
	seen    map[lockPlace]*lockSeen
}

type lockSeen struct {
	waits           int64
	cycles, longest int64
	last            runtime.BlockProfileRecord // sums so far
}

func (l *lockWatch) start() {
	l.stopped = make(chan struct{})
	l.seen = make(map[lockPlace]*lockSeen)
	l.look(true)
	l.ended.Go(func() {
		ticker := time.NewTicker(lockWindow)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				l.look(false)
			case <-l.stopped:
				l.look(false)
				return
			}
		}
	})
}

// look adds up what is new since the last look; the first one only notes what
// was before.
func (l *lockWatch) look(first bool) {
	for where, sum := range sumLocks(lockRecords()) {
		seen, ok := l.seen[where]
		if !ok {
			seen = new(lockSeen)
			l.seen[where] = seen
		}
		if !first {
			cycles := sum.Cycles - seen.last.Cycles
			seen.waits += sum.Count - seen.last.Count
			seen.cycles += cycles
			seen.longest = max(seen.longest, cycles)
		}
		seen.last = sum
	}
}

// maxClasses of waits are shown, the longest first.
const maxClasses = 8

func (l *lockWatch) stop() []LockWait {
	close(l.stopped)
	l.ended.Wait()
	perMS := cyclesPerSecond() / 1000
	var waits []LockWait
	for where, seen := range l.seen {
		if seen.waits > 0 {
			waits = append(waits, LockWait{
				Where: where.names, Own: where.own, Waits: seen.waits,
				MeanMS:   float64(seen.cycles) / float64(seen.waits) / perMS,
				AtMostMS: float64(seen.longest) / perMS,
			})
		}
	}
	slices.SortFunc(waits, func(a, b LockWait) int { return cmp.Compare(b.AtMostMS, a.AtMostMS) })
	return waits[:min(len(waits), maxClasses)]
}

func lockRecords() []runtime.BlockProfileRecord {
	records := make([]runtime.BlockProfileRecord, 256)
	for {
		n, ok := runtime.MutexProfile(records)
		if ok {
			return records[:n]
		}
		records = make([]runtime.BlockProfileRecord, 2*n)
	}
}

// sumLocks adds records up by place.
func sumLocks(records []runtime.BlockProfileRecord) map[lockPlace]runtime.BlockProfileRecord {
	sums := make(map[lockPlace]runtime.BlockProfileRecord)
	for i := range records {
		where, ok := place(records[i].Stack())
		if !ok {
			continue
		}
		sum := sums[where]
		sum.Count += records[i].Count
		sum.Cycles += records[i].Cycles
		sums[where] = sum
	}
	return sums
}

// lockPlace is where a lock is let go.
type lockPlace struct {
	names string
	own   bool
}

const ownPackages = "github.com/coder/agentstatsd/"

// place names the function that let a lock go and who called it. Locks of the
// runtime itself, which no code of the service takes, are left out.
func place(stack []uintptr) (lockPlace, bool) {
	var p lockPlace
	var names []string
	frames := runtime.CallersFrames(stack)
	for more := len(stack) > 0; more && len(names) < 2; {
		var f runtime.Frame
		f, more = frames.Next()
		if strings.HasPrefix(f.Function, "sync.") {
			continue
		}
		if len(names) == 0 && strings.HasPrefix(f.Function, "runtime.") {
			return p, false
		}
		names = append(names, path.Base(f.Function))
		p.own = p.own || strings.HasPrefix(f.Function, ownPackages)
	}
	p.names = strings.Join(names, " < ")
	return p, len(names) > 0
}

// cyclesPerSecond is what the profile counts in. Only its text has it.
func cyclesPerSecond() float64 {
	var text bytes.Buffer
	if err := pprof.Lookup("mutex").WriteTo(&text, 1); err != nil {
		return 1e9
	}
	lines := bufio.NewScanner(&text)
	for lines.Scan() {
		var n float64
		if _, err := fmt.Sscanf(lines.Text(), "cycles/second=%g", &n); err == nil {
			return n
		}
	}
	return 1e9 // nanoseconds
}
