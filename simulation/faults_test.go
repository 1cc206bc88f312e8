package simulation

import (
	"fmt"
	"slices"
	"time"

	"github.com/coder/agentstatsd/fleet"
)

// fault begins something that goes wrong, of a kind that the run has.
func (w *world) fault() {
	p := w.slots[w.random.IntN(slots)]
	hangs := w.random.IntN(2) == 0
	onRoad := func(what string, change func(r *road, on bool)) {
		w.breaks(fmt.Sprintf("%s of %s", what, p.name), func(on bool) {
			w.roads.Lock()
			defer w.roads.Unlock()
			change(p.road, on)
		})
	}
	kind := w.draw(faults)
	switch {
	case w.calm:
		kind = "stop"
	case kind == "":
		kind = "flaky" // so that each run has faults
	}
	w.faults++
	switch kind {
	case "cut":
		onRoad(fmt.Sprintf("cut the database (hangs: %v)", hangs), func(r *road, on bool) { r.cut, r.hangs = on, hangs })
	case "deaf":
		w.breaks(fmt.Sprintf("%s reads nothing, and gets no notifications (hangs: %v)", p.name, hangs), func(on bool) {
			w.roads.Lock()
			p.road.deaf, p.road.hangs = on, hangs
			w.roads.Unlock()
			if on {
				p.end.sever(hangs)
			} else {
				p.end.heal()
			}
		})
	case "writes":
		onRoad(fmt.Sprintf("no session and no value is written (hangs: %v)", hangs), func(r *road, on bool) { r.noWrites, r.hangs = on, hangs })
	case "values":
		onRoad(fmt.Sprintf("no value is written (hangs: %v)", hangs), func(r *road, on bool) { r.noValues, r.hangs = on, hangs })
	case "slow":
		onRoad("slow database", func(r *road, on bool) { r.slow = on })
	case "flaky":
		onRoad("lost answers of the database", func(r *road, on bool) { r.flaky = on })
	case "down":
		w.breaks("the database is down", func(on bool) {
			w.roads.Lock()
			defer w.roads.Unlock()
			w.databaseDown = on
		})
	case "failover":
		w.log("FAULT: failover")
		w.db.FailOver()
	case "pubsub":
		w.breaks(fmt.Sprintf("cut the pubsub of %s (hangs: %v)", p.name, hangs), func(on bool) {
			if on {
				p.end.sever(hangs)
			} else {
				p.end.heal()
			}
		})
	case "reorder":
		w.breaks("the pubsub is slow and reorders", func(on bool) {
			if on {
				w.bus.set(2*time.Second, true)
			} else {
				w.bus.set(5*time.Millisecond, false)
			}
		})
	case "skew":
		w.skewClock(p.slot)
	case "alone":
		w.breaks("cut "+p.name+" off from everything", func(on bool) {
			w.roads.Lock()
			p.road.cut, p.road.hangs = on, hangs
			w.roads.Unlock()
			if on {
				p.end.sever(hangs)
			} else {
				p.end.heal()
			}
		})
	case "kill", "stop":
		if i := slices.IndexFunc(w.slots[:], (*process).cannotWrite); i >= 0 && hangs {
			p = w.slots[i] // is in trouble, so it ends more often
		}
		w.restart(p, kind == "kill")
	}
}

func (p *process) cannotWrite() bool {
	p.road.mu.Lock()
	defer p.road.mu.Unlock()
	return p.serving && p.road.noWrites
}

func (w *world) skewClock(slot int) {
	skew := time.Duration(w.random.Int64N(int64(maxSkew))) - maxSkew/2
	if w.random.IntN(3) == 0 {
		skew = 0
	}
	w.skew[slot].Store(int64(skew))
	w.log("FAULT: the clock of %s is off by %v", w.slots[slot].name, skew)
}

// breaks has a fault begin, and end in a while.
func (w *world) breaks(what string, set func(on bool)) {
	set(true)
	lasts := w.within(100*time.Millisecond, 30*time.Second)
	w.log("FAULT: %s, for %v", what, lasts)
	w.mends = append(w.mends, mend{time.Now().Add(lasts), what, func() { set(false) }})
}

// finishMends ends the faults that have lasted long enough.
func (w *world) finishMends() {
	w.mends = slices.DeleteFunc(w.mends, func(m mend) bool {
		if time.Now().Before(m.at) {
			return false
		}
		w.log("mended: %s", m.what)
		m.do()
		return true
	})
}

// restart kills a process, or has it stop; another one starts in its slot later.
func (w *world) restart(p *process, kill bool) {
	if !p.serving || len(w.serving()) < 2 {
		return
	}
	how := "stops"
	if kill {
		how = "is killed"
	}
	away := w.within(10*time.Millisecond, 20*time.Second)
	w.log("FAULT: %s %s, for %v", p.name, how, away)
	for _, a := range w.agents[1:] {
		if c := a.client; c != nil && c.session != nil && c.on == p {
			if !kill {
				w.poll(c)
			}
			w.disconnect(c, !kill, fleet.EndDrain)
		}
	}
	w.zombies = slices.DeleteFunc(w.zombies, func(z zombie) bool {
		if z.on == p && !kill {
			z.session.Close(fleet.EndDrain)
		}
		return z.on == p
	})
	if kill {
		p.kill()
	} else {
		p.shutDown()
	}
	w.mends = append(w.mends, mend{time.Now().Add(away), p.name + " is away", func() { w.begin(p.slot) }})
}
