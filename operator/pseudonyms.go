package operator

import (
	"cmp"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Kinds of names that are replaced, as pseudonyms begin.
const (
	kindOwner     = "owner"
	kindWorkspace = "workspace"
	kindAgent     = "agent"
)

// pseudonyms replace the names of owners, workspaces and agents, each by the same
// pseudonym everywhere. The key of the hash is in memory only: nobody can try names.
type pseudonyms struct {
	key []byte
	// known are the pseudonyms of names that were seen.
	known map[string]string
	// odd replaces the known names that are no word; nil: it has to be made anew.
	odd *strings.Replacer
}

func newPseudonyms() *pseudonyms {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails
	return &pseudonyms{key: key, known: make(map[string]string)}
}

// of returns the pseudonym of a name. What a name is first seen as, it stays.
func (p *pseudonyms) of(kind, name string) string {
	if name == "" {
		return ""
	}
	if known, ok := p.known[name]; ok {
		return known
	}
	mac := hmac.New(sha256.New, p.key)
	mac.Write([]byte(name))
	pseudonym := fmt.Sprintf("%s-%x", kind, mac.Sum(nil)[:6])
	p.known[name] = pseudonym
	p.known[pseudonym] = pseudonym // it is not replaced again
	p.odd = nil
	return pseudonym
}

var (
	nameWord = regexp.MustCompile(`[A-Za-z0-9_-]+`)
	// namedValue matches what a log and metrics name by a key, in text and in JSON.
	namedValue = regexp.MustCompile(`\b(owner|username|workspace|workspace_name|agent_name)("?[=:])("(?:[^"\\]|\\.)*"|[^\s",}]+)`)
)

var kindOfKey = map[string]string{
	"owner": kindOwner, "username": kindOwner, "workspace": kindWorkspace, "workspace_name": kindWorkspace, "agent_name": kindAgent,
}

// text returns a text with all names replaced that were seen, or that stand behind a key.
func (p *pseudonyms) text(text string) string {
	text = namedValue.ReplaceAllStringFunc(text, func(match string) string {
		m := namedValue.FindStringSubmatch(match)
		name, quoted := m[3], false
		if unquoted, err := strconv.Unquote(name); err == nil {
			name, quoted = unquoted, true
		}
		if _, err := uuid.Parse(name); err == nil {
			return match
		}
		name = p.of(kindOfKey[m[1]], name)
		if quoted {
			name = strconv.Quote(name)
		}
		return m[1] + m[2] + name
	})
	if p.odd == nil {
		var pairs []string
		// Of two that begin at one place a Replacer takes the first.
		for _, name := range slices.SortedFunc(maps.Keys(p.known), func(a, b string) int { return cmp.Compare(len(b), len(a)) }) {
			if nameWord.FindString(name) != name {
				pairs = append(pairs, name, p.known[name])
			}
		}
		p.odd = strings.NewReplacer(pairs...)
	}
	return nameWord.ReplaceAllStringFunc(p.odd.Replace(text), func(word string) string { return cmp.Or(p.known[word], word) })
}

// namedFields are the fields that have names, by message.
var namedFields = map[protoreflect.FullName]map[protoreflect.Name]string{
	fullName(&agentstatsv1.AgentSummary{}): {"name": kindAgent, "workspace": kindWorkspace, "owner": kindOwner},
	fullName(&agentstatsv1.RefusedAgent{}): {"name": kindAgent, "workspace": kindWorkspace, "owner": kindOwner},
}

func fullName(m proto.Message) protoreflect.FullName { return m.ProtoReflect().Descriptor().FullName() }

// learn sees the names of agents, before texts are replaced that may have them.
func (p *pseudonyms) learn(agents []*agentstatsv1.AgentSummary) {
	for _, a := range agents {
		p.of(kindOwner, a.GetOwner())
		p.of(kindWorkspace, a.GetWorkspace())
		p.of(kindAgent, a.GetName())
	}
}

// message replaces the names in all fields of a message, and of those in it.
func (p *pseudonyms) message(m proto.Message) {
	switch m := m.(type) {
	case *agentstatsv1.CardinalityGroup:
		if kind := kindOfGroup[m.GetBy()]; kind != "" {
			for _, row := range m.GetRows() {
				row.Name = p.path(kind, row.GetName())
			}
			return
		}
	case *agentstatsv1.RefusalSums:
		if m.GetBy() == kindOwner {
			for _, sum := range m.GetSums() {
				sum.Name = p.of(kindOwner, sum.GetName())
			}
			return
		}
	}
	named := namedFields[fullName(m)]
	r := m.ProtoReflect()
	r.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsList():
			for i, list := 0, value.List(); i < list.Len(); i++ {
				switch field.Kind() {
				case protoreflect.MessageKind:
					p.message(list.Get(i).Message().Interface())
				case protoreflect.StringKind:
					list.Set(i, protoreflect.ValueOfString(p.text(list.Get(i).String())))
				}
			}
		case field.Kind() == protoreflect.MessageKind:
			p.message(value.Message().Interface())
		case field.Kind() == protoreflect.StringKind && named[field.Name()] != "":
			r.Set(field, protoreflect.ValueOfString(p.of(named[field.Name()], value.String())))
		case field.Kind() == protoreflect.StringKind && field.Name() != "by":
			r.Set(field, protoreflect.ValueOfString(p.text(value.String())))
		}
		return true
	})
}

// kindOfGroup is what the last part of the names of a group is of.
var kindOfGroup = map[string]string{"owner": kindOwner, "workspace": kindWorkspace, "agent": kindAgent}

// path replaces the parts of OWNER, OWNER/WORKSPACE or OWNER/WORKSPACE.AGENT.
func (p *pseudonyms) path(kind, name string) string {
	owner, workspace, _ := strings.Cut(name, "/")
	if kind == kindOwner {
		return p.of(kindOwner, name)
	}
	var agent string
	if i := strings.LastIndexByte(workspace, '.'); i >= 0 && kind == kindAgent {
		workspace, agent = workspace[:i], "."+p.of(kindAgent, workspace[i+1:])
	}
	return p.of(kindOwner, owner) + "/" + p.of(kindWorkspace, workspace) + agent
}
