package simulation

import (
	"errors"
	"fmt"
	"testing/synctest"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
)

// act does one step.
func (w *world) act() error {
	w.step++
	w.tick() // what was begun before is under way
	w.finishMends()
	if w.random.IntN(faultEvery[w.profile]) == 0 {
		w.fault()
	}
	switch w.draw(actors) {
	case "agent":
		w.actAgent()
	case "coderd":
		w.actCoderd()
	case "push":
		if p := w.anyProcess(); p != nil {
			w.push(p)
		}
	}
	pause := w.within(time.Millisecond, w.pace)
	if w.random.IntN(15) == 0 {
		pause = w.within(w.pace, 8*w.pace)
	}
	time.Sleep(pause)
	synctest.Wait()
	if err := w.look(); err != nil {
		return err
	}
	return w.checkLedgers()
}

// look has agents read what they are sent, and checks what must be so at any time.
func (w *world) look() error {
	w.drainChanges()
	for _, a := range w.agents[1:] {
		if a.client != nil {
			w.poll(a.client)
		}
	}
	w.reconnect()
	w.drainChanges() // time passed
	return w.checkAlways()
}

// reconnect has agents connect that lost their session a while ago.
func (w *world) reconnect() {
	for _, a := range w.agents[1:] {
		c := a.client
		if c == nil || c.session != nil || time.Now().Before(c.retryAt) {
			continue
		}
		if p := w.anyTarget(); p != nil {
			w.connect(c, p)
		}
	}
}

func (w *world) actCoderd() {
	p, q := w.anyProcess(), w.anyProcess()
	if p == nil || w.coderd.isBusy() && w.random.IntN(3) > 0 {
		return
	}
	n := 1 + w.random.IntN(w.few)
	switch w.draw(coderdActs) {
	case "register":
		w.register(p, n)
	case "deregister":
		w.deregister(p, n)
	case "bounce":
		w.bounce(p, q, n)
	case "sync":
		if w.coderd.sync != nil {
			w.endSync()
			return
		}
		if w.random.IntN(2) == 0 { // which the sync knows nothing of, and which may come back
			w.coderd.desired[n] = false
		}
		w.beginSync(p)
	}
}

// newClient starts a process of the agent.
func (w *world) newClient(a *simAgent) {
	a.clients++
	a.client = &client{
		agent: a, instance: agent.Instance{0: byte(a.clients), 1: byte(a.number)},
		knows: make(map[string]value), asked: make(map[int64][]string),
	}
	if p := w.anyTarget(); p != nil {
		w.connect(a.client, p)
	}
}

func (w *world) actAgent() {
	a := w.anyAgent()
	c := a.client
	if c == nil {
		w.newClient(a)
		return
	}
	noticed := !w.with("unnoticed") || w.random.IntN(2) == 0
	switch w.draw(agentActs) {
	case "move": // goes elsewhere
		w.disconnect(c, noticed, fleet.EndDisconnect)
		if p := w.anyTarget(); p != nil {
			w.connect(c, p)
		}
	case "leave":
		w.disconnect(c, noticed, fleet.EndDisconnect)
		if w.random.IntN(4) == 0 {
			c.retryAt = time.Now().Add(w.within(0, 20*time.Second))
		}
	case "process": // dies, or ends
		if w.random.IntN(2) == 0 {
			w.disconnect(c, true, fleet.EndGoodbye)
		} else {
			w.disconnect(c, noticed, fleet.EndDisconnect)
		}
		c.forgetReports()
		a.client = nil
		if w.random.IntN(2) == 0 { // and another one begins
			if w.calm { // it takes longer than replicas take to learn of the end
				time.Sleep(100 * time.Millisecond)
			}
			w.newClient(a)
		}
	case "report":
		w.report(c)
	case "lifecycle":
		w.send(c, w.say(c, lifecycle))
	case "health":
		w.send(c, w.say(c, health+string("abc"[w.random.IntN(3)])))
	case "network":
		w.send(c, w.say(c, network))
	case "poison": // what the database refuses
		count := 1
		if w.with("many") && w.random.IntN(6) == 0 {
			count = 100
		}
		parts := make([]string, count)
		for i := range parts {
			parts[i] = fmt.Sprintf("%s%s-%d", meta, poison, i)
		}
		w.send(c, w.say(c, parts...))
	case "metadata":
		var parts []string
		for _, key := range []string{"cpu", "disk", "load"} {
			if w.random.IntN(2) == 0 {
				parts = append(parts, meta+key)
			}
		}
		if len(parts) > 0 {
			w.send(c, w.say(c, parts...))
		}
	}
}

// quiesce mends all that is wrong, and waits until all that follows from it must be
// over.
func (w *world) quiesce() error {
	w.log("all is mended")
	for _, m := range w.mends {
		m.do()
	}
	w.mends = nil
	if w.coderd.sync != nil {
		w.endSync()
	}
	calm := false
	for end := time.Now().Add(quiesceTime); time.Now().Before(end); {
		time.Sleep(w.within(400*time.Millisecond, 600*time.Millisecond))
		synctest.Wait()
		if !calm && time.Until(end) < quiesceTime-calmAfter {
			calm = true
			w.setCalm(true)
		}
		if err := w.look(); err != nil {
			return err
		}
	}
	if err := w.awaitSessions(); err != nil {
		return err
	}
	time.Sleep(8 * time.Second)
	synctest.Wait()
	w.drainChanges()
	for _, a := range w.agents[1:] {
		if a.client != nil {
			w.pollAcks(a.client)
		}
	}
	if err := errors.Join(w.checkAlways(), w.checkLedgers(), w.checkPushed(true), w.checkQuiescent(), w.checkWatched(true), w.checkIntervals(true)); err != nil {
		return err
	}
	w.setCalm(false)
	return nil
}

// awaitSessions waits until each agent that gets in has a session that lasts, and coderd
// awaits no answer. A session that aged just now is followed by another one.
func (w *world) awaitSessions() error {
	var between []*client
	for end := time.Now().Add(agents * reconnectTime); time.Now().Before(end); {
		if between = w.betweenSessions(); len(between) == 0 && !w.coderd.isBusy() {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
		if err := w.look(); err != nil {
			return err
		}
	}
	return fmt.Errorf("after %v more: %v are between sessions, coderd awaits an answer: %v", agents*reconnectTime, between, w.coderd.isBusy())
}

// betweenSessions returns the processes that may have a session and have none, or are
// about to leave theirs.
func (w *world) betweenSessions() (list []*client) {
	for _, a := range w.agents[1:] {
		switch c := a.client; {
		case c == nil:
		case c.session == nil && w.getsIn(a), c.session != nil && c.session.Aged():
			list = append(list, c)
		}
	}
	return list
}

// getsIn reports whether the agent is registered with a token: without one, which coderd
// may lack, it is refused.
func (w *world) getsIn(a *simAgent) bool {
	return w.db.Registration(a.reg.ID).TokenHash != [32]byte{}
}

// pollAcks is poll for an agent that does not follow what it is asked for.
func (w *world) pollAcks(c *client) {
	if c.session == nil {
		return
	}
	w.receiveAck(c)
}
