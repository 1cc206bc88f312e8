// Package shares decides which replica serves what has no session, by rendezvous hashing:
// of all replicas the one serves a workspace that has the highest weight for its labels.
// So workspaces with equal labels meet on one replica, and where a replica comes or goes
// only its own share moves.
package shares

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/coder/agentstatsd/agent"
)

// Shares are the shares of some replicas, as one of them sees them. They do not change.
type Shares struct {
	self     agent.ID
	replicas []agent.ID
}

// New returns the shares of these replicas, in any order, without duplicates. self need not
// be one of them: then it has no share.
func New(self agent.ID, replicas []agent.ID) *Shares {
	return &Shares{self, slices.Clone(replicas)}
}

// Of returns whether the shares are of exactly these replicas, in the order given to New.
func (s *Shares) Of(replicas []agent.ID) bool { return slices.Equal(s.replicas, replicas) }

// Has returns whether self serves the workspaces with these labels. It allocates nothing.
func (s *Shares) Has(username, workspace string) bool {
	owner, ok := s.Owner(username, workspace)
	return ok && owner == s.self
}

// Owner returns which replica serves the workspaces with these labels; false: none does, as
// there are no replicas. Every process has the same answer: the hash has no seed.
func (s *Shares) Owner(username, workspace string) (owner agent.ID, ok bool) {
	if len(s.replicas) < 2 {
		if len(s.replicas) == 1 {
			owner = s.replicas[0]
		}
		return owner, len(s.replicas) == 1
	}
	var key [16 + len(agent.ID{})]byte
	binary.LittleEndian.PutUint64(key[:], xxhash.Sum64String(username))
	binary.LittleEndian.PutUint64(key[8:], xxhash.Sum64String(workspace))
	highest := uint64(0)
	for i := range s.replicas {
		replica := &s.replicas[i]
		copy(key[16:], replica[:])
		weight := xxhash.Sum64(key[:])
		if i == 0 || weight > highest || weight == highest && bytes.Compare(replica[:], owner[:]) > 0 {
			highest, owner = weight, *replica
		}
	}
	return owner, true
}
