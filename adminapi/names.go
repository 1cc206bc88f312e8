package adminapi

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/grpcserver"
)

// parseID returns a text as an id; false: it is none in the form that ids are written in.
func parseID(text string) (id agent.ID, ok bool) {
	if len(text) != len("00000000-0000-0000-0000-000000000000") {
		return agent.ID{}, false
	}
	id, err := uuid.Parse(text)
	return id, err == nil
}

// appendName appends OWNER/WORKSPACE.AGENT.
func appendName(dst []byte, reg *agent.Registration) []byte {
	dst = append(append(dst, reg.Workspace.OwnerUsername...), '/')
	dst = append(append(dst, reg.Workspace.Name...), '.')
	return append(dst, reg.Name...)
}

// containsLower returns whether a text in lower case contains part. It may change text.
func containsLower(text, part []byte) bool {
	for i, b := range text {
		switch {
		case 'A' <= b && b <= 'Z':
			text[i] += 'a' - 'A'
		case b >= utf8.RuneSelf:
			return bytes.Contains(bytes.ToLower(text), part)
		}
	}
	return bytes.Contains(text, part)
}

// agentKey is what agents are ordered by in lists.
type agentKey struct {
	owner, workspace, name string
	id                     agent.ID
}

func keyOf(reg *agent.Registration) agentKey {
	return agentKey{reg.Workspace.OwnerUsername, reg.Workspace.Name, reg.Name, reg.ID}
}

// compareTo compares an agent with the key. Most agents differ by their owners.
func (k *agentKey) compareTo(reg *agent.Registration) int {
	if c := strings.Compare(k.owner, reg.Workspace.OwnerUsername); c != 0 {
		return c
	}
	return cmp.Or(strings.Compare(k.workspace, reg.Workspace.Name), strings.Compare(k.name, reg.Name), bytes.Compare(k.id[:], reg.ID[:]))
}

// token returns the page token of the page that begins after the key. It stays good
// whatever is registered or removed meanwhile.
func (k agentKey) token() string {
	text, _ := json.Marshal([...]string{k.owner, k.workspace, k.name, k.id.String()}) // texts always can be
	return base64.RawURLEncoding.EncodeToString(text)
}

// parseAgentKey returns the key of a page token; of an empty one the zero key, which is
// before all.
func parseAgentKey(token string) (k agentKey, err error) {
	if token == "" {
		return agentKey{}, nil
	}
	var parts []string
	text, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil {
		err = json.Unmarshal(text, &parts)
	}
	if err == nil && len(parts) == 4 {
		if id, ok := parseID(parts[3]); ok {
			return agentKey{parts[0], parts[1], parts[2], id}, nil
		}
	}
	return agentKey{}, grpcserver.Invalid("page_token", "want next_page_token of another page, got %d bytes that are none", len(token))
}

// firstAgents are the first agents after a key, of those that are added in any order. It
// keeps up to twice as many.
type firstAgents struct {
	limit int
	after agentKey

	found []*agent.Registration
	// last is the last of the first ones, once there are that many.
	last *agentKey
}

// add adds a copy of reg.
func (f *firstAgents) add(reg *agent.Registration) {
	if f.last != nil && f.last.compareTo(reg) < 0 || f.after.compareTo(reg) >= 0 {
		return
	}
	f.found = append(f.found, reg.Clone())
	if len(f.found) == 2*f.limit {
		f.found = slices.Grow(f.sorted(), f.limit)
		last := keyOf(f.found[f.limit-1])
		f.last = &last
	}
}

// sorted returns the first ones, at most limit.
func (f *firstAgents) sorted() []*agent.Registration {
	slices.SortFunc(f.found, func(a, b *agent.Registration) int {
		key := keyOf(a)
		return key.compareTo(b)
	})
	return f.found[:min(len(f.found), f.limit)]
}
