package agentapi

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// The messages of replicas are JSON, with reports as the base64 of the protobuf
// messages that watchers get.

// relayChannel is where replicas say what they watch. Each has one of its own
// beside, which ends in its id.
const relayChannel = "agentstatsd_feed"

func relayChannelOf(replica agent.ID) string {
	return relayChannel + "_" + base64.RawURLEncoding.EncodeToString(replica[:])
}

const (
	// maxRelayPayload is what every bus takes in one message, in bytes.
	maxRelayPayload = 7977
	// relayRoom is what lists may take of that: the rest is for what is around
	// them, 250 bytes at most.
	relayRoom = 7700
	// partBytes is what is around the name and the entries of a part, at most.
	partBytes = 100
	// maxEntryBytes is the size of an entry that fits into a message beside the
	// longest name, 64 bytes of 6 each: (7700-386-100)*3/4 is 5410.
	maxEntryBytes = 5300
	// fewNames of each kind are left of an entry that is larger: with 128 bytes
	// each they are 2*16*144.
	fewNames = 16
)

// relayMessage is what one replica tells another, or all. One of the fields is
// set, beside From.
type relayMessage struct {
	From     agent.ID      `json:"from"`
	Announce *announcement `json:"announce,omitempty"`
	Parcel   *parcel       `json:"parcel,omitempty"`
	Ack      *parcelID     `json:"ack,omitempty"`
	Settled  []settlement  `json:"settled,omitempty"`
	// Gone is the last parcel of the receiver that the sender took, which leaves
	// and takes no other.
	Gone *parcelID `json:"gone,omitempty"`
}

// announcement tells all replicas what one of them watches.
type announcement struct {
	// Round counts how often all was told.
	Round int64 `json:"round"`
	// Ask has the others announce at once.
	Ask bool `json:"ask,omitempty"`
	interest
	// Claims are the names that the replica is the home of, or some of them: what
	// does not fit is in other messages.
	Claims []claim `json:"claims,omitempty"`
	// Ended are names that nobody watches any more.
	Ended []claim `json:"ended,omitempty"`
}

// parcelID numbers the parcels from one replica to another. A higher epoch is
// newer; in an epoch the sequence rises by one from 1.
type parcelID struct {
	Epoch    uint64 `json:"epoch"`
	Sequence int64  `json:"sequence"`
}

// parcel hands reports on, so that they are the receiver's when it has acked.
type parcel struct {
	parcelID
	Parts []part `json:"parts"`
}

// part is what is handed on to one watch, or to one audience.
type part struct {
	// Name of the watch; empty: it is for an audience.
	Name string `json:"name,omitempty"`
	// interest says for which audience since when it was gathered.
	interest
	// Data is an encoded WatchStatsResponse, or a WatchActivityResponse if it is
	// for the audience of activity.
	Data []byte `json:"data"`
}

// textSize returns the size of a name in JSON.
func textSize(name string) int {
	text, err := json.Marshal(name)
	if err != nil {
		return 0 // strings have no errors
	}
	return len(text)
}

// base64Size returns at least what an element of an encoded list adds to its
// base64.
func base64Size(element proto.Message) int {
	return (proto.Size(element)+4)*4/3 + 1
}

// trimmed returns the entry without most of the names in it if it is too large
// for a message, and how many were left out.
func trimmed(a *agentstatsv1.AgentStats) (*agentstatsv1.AgentStats, int) {
	if proto.Size(a) <= maxEntryBytes {
		return a, 0
	}
	a = proto.CloneOf(a)
	var left, more int
	a.Stats.SessionCounts, left = trimNames(a.GetStats().GetSessionCounts())
	a.Stats.ConnectionsByProto, more = trimNames(a.GetStats().GetConnectionsByProto())
	return a, left + more
}

// trimNames returns fewNames of the counts, those of known names first.
func trimNames(counts map[string]int64) (map[string]int64, int) {
	if len(counts) <= fewNames {
		return counts, 0
	}
	names := slices.Sorted(maps.Keys(counts))
	slices.SortStableFunc(names, func(a, b string) int { return rank(a) - rank(b) })
	few := make(map[string]int64, fewNames)
	for _, name := range names[:fewNames] {
		few[name] = counts[name]
	}
	return few, len(counts) - len(few)
}

func rank(name string) int {
	if isKnown(name) {
		return 0
	}
	return 1
}

// cutList cuts a list into parts of which each takes at most relayRoom bytes in
// JSON. No element takes more.
func cutList[E any](list []E) (parts [][]E) {
	size := 0
	for _, e := range list {
		text, err := json.Marshal(e)
		if err != nil {
			continue // these types have no errors
		}
		if len(parts) == 0 || size+len(text)+1 > relayRoom {
			parts = append(parts, nil)
			size = 0
		}
		size += len(text) + 1
		parts[len(parts)-1] = append(parts[len(parts)-1], e)
	}
	return parts
}
