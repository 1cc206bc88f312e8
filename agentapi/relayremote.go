package agentapi

import (
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// remote is another replica, as the relay knows it. It is guarded by the
// relay's mutex.
type remote struct {
	id      agent.ID
	channel string
	heard   time.Time // when it said anything last
	gone    bool      // it has taken leave

	// What is gathered for its audiences, beside the watches that it is the home
	// of.
	announced   time.Time // when it said last what it watches
	round       int64     // of its announcements
	interest    interest
	unnamed     *statsWatch // nil: it has no such audience
	endUnnamed  func()
	activity    *activityWatch // nil: it has no such audience
	endActivity func()
	uses        []*agentstatsv1.WorkspaceActivity // taken from activity, not sent

	// What is sent to it.
	last  parcelID    // of the newest parcel
	way   *sentParcel // not acked; nil: there is none
	pause time.Time   // before it there is no next one

	// What it has sent.
	taken   parcelID // its newest parcel
	owesAck bool
	settled []settlement // what it is to be told
}

// sentParcel is a parcel on the way.
type sentParcel struct {
	parcelID
	letter   letter
	contents []content
	made     time.Time
	sent     time.Time // zero: it is to be sent at once
	resent   bool      // the next time that it is sent is not the first
}

// content is what a part of a parcel holds.
type content struct {
	name     string // of the watch; empty: it is for an audience
	interest interest
	stats    []*agentstatsv1.AgentStats
	uses     []*agentstatsv1.WorkspaceActivity
}

// reports returns how many reports of stats are on the way.
func (p *sentParcel) reports() (n int64) {
	if p == nil {
		return 0
	}
	for _, c := range p.contents {
		n = saturatingAdd(n, countReports(c.stats))
	}
	return n
}

func (p parcelID) newer(than parcelID) bool {
	if p.Epoch != than.Epoch {
		return p.Epoch > than.Epoch
	}
	return p.Sequence > than.Sequence
}

// remoteLocked returns the replica, which has just spoken.
func (r *relay) remoteLocked(id agent.ID, now time.Time) *remote {
	from := r.remotes[id]
	if from == nil {
		if len(r.remotes) >= maxRemotes {
			r.evictLocked()
		}
		r.epochs++
		from = &remote{id: id, channel: relayChannelOf(id), announced: now, last: parcelID{Epoch: r.epochs}}
		r.remotes[id] = from
	}
	from.heard = now
	return from
}

// evictLocked forgets the replica that was silent longest.
func (r *relay) evictLocked() {
	var oldest *remote
	for _, to := range r.remotes {
		if oldest == nil || to.heard.Before(oldest.heard) {
			oldest = to
		}
	}
	oldest.drop(r, droppedLimit)
	delete(r.remotes, oldest.id)
	r.metrics.relayRefused.WithLabelValues(refusedReplica).Inc()
}

// watch gathers for the audiences that the replica has now.
func (to *remote) watch(now interest, r *relay) {
	if now.Unnamed != to.interest.Unnamed {
		if to.unnamed != nil {
			to.endUnnamed()
			to.unnamed = nil
		}
		if now.Unnamed != 0 {
			to.unnamed = newStatsWatch(nil, r.maxAgents, r.metrics)
			to.endUnnamed = r.feed.watch(to.unnamed, r.early.since(now.Unnamed))
		}
	}
	if now.Activity != to.interest.Activity {
		if to.activity != nil {
			to.endActivity()
			to.activity, to.uses = nil, nil
		}
		if now.Activity != 0 {
			to.activity = newActivityWatch(minActivityInterval, r.maxAgents, r.metrics)
			to.endActivity = r.feed.watch(to.activity, r.early.since(now.Activity))
		}
	}
	to.interest = now
}

// drop ends what is gathered for the replica's audiences and gives up the
// parcel on the way: it may have been taken, so it goes nowhere else.
func (to *remote) drop(r *relay, reason string) {
	lost := to.way.reports()
	if to.unnamed != nil {
		lost = saturatingAdd(lost, to.unnamed.waiting())
	}
	r.metrics.relayDropped.WithLabelValues(reason).Add(float64(lost))
	to.way = nil
	to.watch(interest{}, r)
}

// expire drops what has waited for the retention, and tells whether the replica
// can be forgotten: not before it has given up what it has sent and did not hear
// of, so that it is not taken twice.
func (to *remote) expire(now time.Time, r *relay) (forget bool) {
	if now.Sub(to.announced) >= r.retention && to.interest != (interest{}) ||
		to.way != nil && now.Sub(to.way.made) >= r.retention {
		to.drop(r, droppedSilent)
	}
	return to.way == nil && now.Sub(to.heard) >= 2*r.retention
}

// owes tells whether something is on the way to the replica, or to be sent.
func (to *remote) owes() bool {
	if to.gone {
		return false
	}
	return to.owesAck || to.way != nil || len(to.uses) > 0 ||
		to.unnamed != nil && to.unnamed.waiting() > 0 ||
		to.activity != nil && to.activity.waits()
}

// lettersLocked returns what is to be sent to the replica now.
func (r *relay) lettersLocked(to *remote, now time.Time) (letters []letter) {
	if to.gone {
		return nil
	}
	if to.owesAck {
		to.owesAck = false
		letters = append(letters, r.letter(to.channel, relayMessage{Ack: &to.taken}))
	}
	for _, part := range cutList(to.settled) {
		letters = append(letters, r.letter(to.channel, relayMessage{Settled: part}))
	}
	to.settled = nil
	if to.way == nil && !to.pause.After(now) {
		r.packLocked(to, now)
	}
	if to.way != nil && now.Sub(to.way.sent) >= r.resend {
		kind := parcelSent
		if to.way.resent {
			kind = parcelResent
		}
		to.way.resent = true
		r.metrics.relayParcels.WithLabelValues(kind).Inc()
		to.way.sent = now
		letters = append(letters, to.way.letter)
	}
	return letters
}

// packLocked makes the next parcel of what was gathered, if there is any.
func (r *relay) packLocked(to *remote, now time.Time) {
	p := packing{room: relayRoom, metrics: r.metrics}
	r.names.gather(to.id, func(name string, w *statsWatch) bool {
		return p.addStats(content{name: name}, w)
	})
	if to.unnamed != nil && !p.full {
		p.addStats(content{interest: interest{Unnamed: to.interest.Unnamed}}, to.unnamed)
	}
	if to.activity != nil && !p.full {
		if len(to.uses) == 0 {
			to.uses, _ = to.activity.take(now)
		}
		to.uses = p.addUses(content{interest: interest{Activity: to.interest.Activity}}, to.uses)
	}
	if !p.full {
		// What comes next gathers for a while.
		to.pause = now.Add(watchPause)
	}
	if len(p.contents) == 0 {
		return
	}
	to.last.Sequence++
	m := parcel{parcelID: to.last}
	for _, c := range p.contents {
		data, err := c.encode()
		if err != nil {
			r.log.Error("reports for another replica cannot be encoded", "error", err)
			continue
		}
		m.Parts = append(m.Parts, part{Name: c.name, interest: c.interest, Data: data})
	}
	to.way = &sentParcel{
		parcelID: to.last,
		letter:   r.letter(to.channel, relayMessage{Parcel: &m}),
		contents: p.contents,
		made:     now,
	}
}

func (c *content) encode() ([]byte, error) {
	if c.interest.Activity != 0 {
		return proto.Marshal(&agentstatsv1.WatchActivityResponse{Workspaces: c.uses})
	}
	return proto.Marshal(&agentstatsv1.WatchStatsResponse{Agents: c.stats})
}

// packing is a parcel that is being filled.
type packing struct {
	room     int // in bytes
	full     bool
	contents []content
	metrics  *metrics
}

// begin takes the room of a part's frame.
func (p *packing) begin(c *content) (room int) {
	return p.room - partBytes - textSize(c.name)
}

func (p *packing) finish(c content, room int) {
	p.contents = append(p.contents, c)
	p.room = room
}

// addStats adds a part with what is untold in a watch, as far as it fits. It
// returns false if there is no more room.
func (p *packing) addStats(c content, w *statsWatch) bool {
	room := p.begin(&c)
	all := w.takeEach(func(a *agentstatsv1.AgentStats) bool {
		a, left := trimmed(a)
		size := base64Size(a)
		if size > room {
			return false
		}
		p.metrics.relayNames.Add(float64(left))
		room -= size
		c.stats = append(c.stats, a)
		return true
	})
	if len(c.stats) > 0 {
		p.finish(c, room)
	}
	p.full = !all
	return all
}

// addUses adds a part with uses of workspaces, and returns those that do not
// fit.
func (p *packing) addUses(c content, uses []*agentstatsv1.WorkspaceActivity) (left []*agentstatsv1.WorkspaceActivity) {
	room := p.begin(&c)
	for len(uses) > 0 && base64Size(uses[0]) <= room {
		room -= base64Size(uses[0])
		c.uses = append(c.uses, uses[0])
		uses = uses[1:]
	}
	if len(c.uses) > 0 {
		p.finish(c, room)
	}
	p.full = len(uses) > 0
	return uses
}

// hearOwn takes in what another replica tells this one.
func (r *relay) hearOwn(m *relayMessage) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	from := r.remotes[m.From]
	switch {
	case r.stopped:
	case m.Parcel != nil:
		from = r.remoteLocked(m.From, now)
		from.owesAck = true
		if !m.Parcel.newer(from.taken) {
			r.metrics.relayParcels.WithLabelValues(parcelRepeated).Inc()
			return
		}
		from.taken = m.Parcel.parcelID
		r.metrics.relayParcels.WithLabelValues(parcelTaken).Inc()
		for i := range m.Parcel.Parts {
			r.takeLocked(&m.Parcel.Parts[i])
		}
	case from == nil: // it is told nothing, so its answers mean nothing
	case m.Ack != nil:
		from.heard = now
		if from.way != nil && from.way.parcelID == *m.Ack {
			from.way = nil
		}
	case m.Gone != nil:
		r.partLocked(from, *m.Gone)
	}
	for _, s := range m.Settled {
		r.names.settle(s)
	}
}

// takeLocked makes the reports of a part this replica's.
func (r *relay) takeLocked(p *part) {
	var stats agentstatsv1.WatchStatsResponse
	var activity agentstatsv1.WatchActivityResponse
	var into proto.Message = &stats
	if p.Activity != 0 {
		into = &activity
	}
	if err := proto.Unmarshal(p.Data, into); err != nil {
		r.metrics.relayErrors.WithLabelValues(relayMalformed).Inc()
		r.log.Debug("reports of another replica are malformed", "error", err)
		return
	}
	if p.Activity != 0 {
		uses := make([]workspaceUse, 0, len(activity.GetWorkspaces()))
		for _, w := range activity.GetWorkspaces() {
			if id, ok := relayedID(w.GetWorkspaceId()); ok {
				uses = append(uses, workspaceUse{id, w.GetLastUsedAt().AsTime()})
			}
		}
		r.feed.relayUses(p.Activity, uses)
		return
	}
	reports := make([]reportOf, 0, len(stats.GetAgents()))
	for _, a := range stats.GetAgents() {
		id, ok := relayedID(a.GetAgentId())
		workspace, also := relayedID(a.GetWorkspaceId())
		if ok && also {
			reports = append(reports, reportOf{id, workspace, a.GetReceivedAt().AsTime(), a.GetStats(), a.GetReports()})
		}
	}
	if p.Name != "" {
		r.names.merge(p.Name, reports)
	} else {
		r.feed.relay(p.Unnamed, reports)
	}
}

func relayedID(id []byte) (agent.ID, bool) {
	if len(id) != len(agent.ID{}) {
		return agent.ID{}, false
	}
	return agent.ID(id), true
}

// partLocked takes leave of a replica, which has taken the parcels up to one.
// What is still on the way was not taken: for watches with names it waits for
// their next homes.
func (r *relay) partLocked(from *remote, taken parcelID) {
	if from.way != nil && from.way.newer(taken) {
		for _, c := range from.way.contents {
			if c.name != "" {
				r.names.putBack(c.name, c.stats)
			}
		}
	}
	from.way = nil
	from.watch(interest{}, r)
	from.gone = true
}
