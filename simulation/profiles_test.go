package simulation

import "time"

// The profiles. Half of all runs do everything. Each of the others concentrates on a
// few kinds of events, so that what takes several of them happens sooner.
const (
	everything = iota
	// epochs: few agents start new processes, on replicas whose clocks differ and that
	// do not know of each other's sessions.
	epochs
	// incarnations: agents are removed and registered again, while what was said
	// before is on its way.
	incarnations
	// crashes: replicas end that others have notifications of, but that wrote nothing.
	crashes
	profiles
)

var profileNames = [profiles]string{
	everything: "everything", epochs: "epochs", incarnations: "incarnations", crashes: "crashes",
}

// weight says how often an event of a kind is drawn under each profile, against the
// others of its table.
type weight struct {
	kind    string
	weights [profiles]int
}

var (
	// actors have one step.
	actors = []weight{ //  everything, epochs, incarnations, crashes
		{"agent", [profiles]int{9, 11, 7, 11}},
		{"coderd", [profiles]int{2, 1, 4, 1}},
		{"push", [profiles]int{1, 0, 0, 0}},
	}
	agentActs = []weight{
		{"move", [profiles]int{1, 1, 1, 0}},
		{"leave", [profiles]int{1, 3, 1, 0}},
		{"process", [profiles]int{1, 3, 2, 3}},
		{"report", [profiles]int{1, 0, 0, 0}},
		{"lifecycle", [profiles]int{2, 1, 1, 0}},
		{"health", [profiles]int{3, 4, 3, 2}},
		{"network", [profiles]int{1, 0, 0, 0}},
		{"poison", [profiles]int{1, 0, 0, 0}},
		{"metadata", [profiles]int{6, 6, 6, 4}},
	}
	coderdActs = []weight{
		{"register", [profiles]int{3, 3, 2, 3}},
		{"deregister", [profiles]int{1, 0, 2, 0}},
		{"bounce", [profiles]int{3, 1, 6, 1}},
		{"sync", [profiles]int{3, 0, 1, 0}},
	}
	faults = []weight{
		{"cut", [profiles]int{1, 0, 0, 0}},
		{"deaf", [profiles]int{1, 6, 3, 5}},
		{"writes", [profiles]int{1, 6, 4, 6}},
		{"values", [profiles]int{1, 4, 3, 0}},
		{"slow", [profiles]int{1, 0, 3, 0}},
		{"flaky", [profiles]int{2, 1, 4, 0}},
		{"down", [profiles]int{1, 0, 0, 0}},
		{"failover", [profiles]int{1, 0, 0, 1}},
		{"pubsub", [profiles]int{2, 4, 2, 3}},
		{"alone", [profiles]int{1, 0, 0, 0}},
		{"reorder", [profiles]int{1, 0, 1, 0}},
		{"skew", [profiles]int{1, 2, 2, 2}},
		{"kill", [profiles]int{1, 0, 0, 5}},
		{"stop", [profiles]int{1, 0, 0, 0}},
	}

	// maxFew is how many agents there are at most that do all that is done.
	maxFew = [profiles]int{agents, 4, 3, 4}
	// faultEvery is the mean number of steps from one fault to the next.
	faultEvery = [profiles]int{7, 6, 6, 5}
	// paces are the times between two steps, at most.
	paces = [profiles][]time.Duration{
		{200 * time.Millisecond, 600 * time.Millisecond, 2 * time.Second},
		{600 * time.Millisecond, 2 * time.Second},
		{600 * time.Millisecond, 2 * time.Second},
		{600 * time.Millisecond, 2 * time.Second},
	}
)

// drawProfile draws what the run concentrates on, and what it does without: nothing
// that its profile favors.
func (w *world) drawProfile() {
	if w.random.IntN(2) == 0 {
		w.profile = 1 + w.random.IntN(profiles-1)
	}
	favored := make(map[string]bool)
	for _, table := range [][]weight{actors, agentActs, coderdActs, faults} {
		for _, k := range table {
			favored[k.kind] = k.weights[w.profile] > k.weights[everything]
		}
	}
	w.omitted = make(map[string]bool)
	for _, kind := range kinds {
		w.omitted[kind] = w.random.IntN(3) == 0 && !favored[kind]
	}
	w.few = 1 + w.random.IntN(maxFew[w.profile])
	w.pace = paces[w.profile][w.random.IntN(len(paces[w.profile]))]
}

// draw returns a kind of the table that the run does not do without; empty: there is
// none.
func (w *world) draw(table []weight) string {
	total := 0
	for _, k := range table {
		if !w.omitted[k.kind] {
			total += k.weights[w.profile]
		}
	}
	if total == 0 {
		return ""
	}
	n := w.random.IntN(total)
	for _, k := range table {
		if w.omitted[k.kind] {
			continue
		}
		if n -= k.weights[w.profile]; n < 0 {
			return k.kind
		}
	}
	panic("unreachable")
}
