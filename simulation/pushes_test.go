package simulation

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
)

// pushedFamily is a counter that coderd counts.
const pushedFamily = "coderd_simulated_events_total"

// pusher is one process of coderd that pushes what it counts. What it counted
// counts for ever, also when it is gone.
type pusher struct {
	number   int
	instance agent.Instance
	snapshot int64
	final    bool

	// Guarded by coderd.mu.

	pushing bool
	// count is what it pushed last, acked what it knows to be stored.
	count, acked float64
}

// push has a process of coderd count, and push to p.
func (w *world) push(p *process) {
	c := w.coderd
	i := w.random.IntN(len(w.pushers))
	pu := w.pushers[i]
	c.mu.Lock()
	defer c.mu.Unlock()
	if pu.pushing {
		return
	}
	if pu.final || w.random.IntN(8) == 0 { // another process in its place
		w.gone = append(w.gone, pu)
		pu = w.newPusher(i)
	}
	pu.pushing, pu.final = true, w.random.IntN(8) == 0
	pu.snapshot++
	pu.count += float64(w.random.IntN(10))
	count := pu.count
	family, err := proto.Marshal(&dto.MetricFamily{
		Name: proto.String(pushedFamily), Help: proto.String("Events."), Type: dto.MetricType_COUNTER.Enum(),
		Metric: []*dto.Metric{{Counter: &dto.Counter{Value: &count}}},
	})
	if err != nil {
		panic(err)
	}
	snapshot := agent.Push{
		Replica: fmt.Sprintf("coderd-%d", i), Instance: pu.instance, Interval: 15 * time.Second,
		Snapshot: pu.snapshot, Final: pu.final, Families: [][]byte{family},
	}
	doing := fmt.Sprintf("coderd-%d.%d pushes %v (snapshot %d, final: %v) to %s", i, pu.number, count, pu.snapshot, pu.final, p.name)
	c.lines = append(c.lines, doing)
	c.calls.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		refused, err := p.pushed.Push(ctx, time.Now(), snapshot)
		if err == nil && len(refused) > 0 {
			err = fmt.Errorf("refused: %v", refused)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		pu.pushing = false
		if err == nil {
			pu.acked = count
		}
		c.lines = append(c.lines, fmt.Sprintf("%s: %v", doing, err))
	})
}

// newPusher puts a new process of coderd in the place of one.
func (w *world) newPusher(i int) *pusher {
	w.pushersMade++
	w.pushers[i] = &pusher{number: w.pushersMade, instance: agent.Instance{0: 0xc0, 1: byte(i), 15: byte(w.pushersMade)}}
	return w.pushers[i]
}

// counted returns the bounds of what all processes of coderd counted: what they
// know to be stored, and what may be.
func (w *world) counted() (least, most float64) {
	c := w.coderd
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, pu := range w.pushers {
		least, most = least+pu.acked, most+pu.count
	}
	for _, pu := range w.gone {
		least, most = least+pu.acked, most+pu.count
	}
	return least, most
}

// checkPushed checks that the sum that is served does not fall, from whatever
// replica. Once quiescent, exactly one serves it, and nothing that was acked is missing.
// Before, two may: a leader that reaches only the pubsub goes on until it learns of
// another one.
func (w *world) checkPushed(quiescent bool) error {
	least, most := w.counted()
	var served []string
	var sum float64
	for _, p := range w.slots {
		if !p.serving {
			continue
		}
		s, serves, err := p.pushedSum()
		if err != nil {
			return err
		}
		if serves {
			served, sum = append(served, fmt.Sprintf("%s: %v", p.name, s)), s
		}
	}
	switch {
	case quiescent && len(served) != 1 && least > 0:
		return fmt.Errorf("%d replicas serve what coderd pushed: %v", len(served), served)
	case len(served) != 1:
		return nil
	case sum < w.pushedSum:
		return fmt.Errorf("%v of %s is served, %v was before", served, pushedFamily, w.pushedSum)
	case sum > most:
		return fmt.Errorf("%v of %s is served, coderd counted %v", served, pushedFamily, most)
	case quiescent && sum < least:
		return fmt.Errorf("%v of %s is served, %v was acked", served, pushedFamily, least)
	}
	w.pushedSum = sum
	return nil
}

// pushedSum returns what p serves of the pushed counter, if it does.
func (p *process) pushedSum() (sum float64, serves bool, err error) {
	var text bytes.Buffer
	if err := p.pushed.WriteText(&text); err != nil {
		return 0, false, err
	}
	for line := range strings.Lines(text.String()) {
		if value, is := strings.CutPrefix(strings.TrimSpace(line), pushedFamily+" "); is {
			sum, err = strconv.ParseFloat(strings.TrimSpace(value), 64)
			return sum, true, err
		}
	}
	return 0, false, nil
}
