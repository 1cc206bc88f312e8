package aggregator

import (
	"slices"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// identityLabels is a set of the labels that name an agent.
type identityLabels uint8

const (
	labelAgent identityLabels = 1 << iota
	labelTemplate
	labelUsername
	labelWorkspace

	allLabels = labelAgent | labelTemplate | labelUsername | labelWorkspace
)

// identityNames are the labels' names in the order of their bits, which is the
// alphabet's.
var identityNames = [...]string{"agent_name", labelTemplateName, labelUsernameName, labelWorkspaceName}

// IdentityLabels returns the names of the labels that name an agent, in the
// alphabet's order: those that Options.GroupBy can have.
func IdentityLabels() []string { return slices.Clone(identityNames[:]) }

const (
	// labelTemplateName is the one of identityNames that not every documented family has.
	labelTemplateName = "template_name"
	// These two name a workspace.
	labelUsernameName  = "username"
	labelWorkspaceName = "workspace_name"
)

func identityLabel(name string) (identityLabels, bool) {
	for i, n := range identityNames {
		if n == name {
			return 1 << i, true
		}
	}
	return 0, false
}

// appendPrefix appends the beginning of the series' lines: the name, the labels in
// braces, if there are any, and a blank. The labels are d's extra ones, which are
// sorted, and those of ident that keep has and that are not empty, sorted by name.
// No extra label has the name of one of ident's. So two prefixes are equal only if
// all their parts are.
func appendPrefix(dst []byte, d *desc, ident *agent.Identity, keep identityLabels) []byte {
	dst = append(dst, d.name...)
	values := [...]string{ident.AgentName, ident.TemplateName, ident.Username, ident.WorkspaceName}
	sep := byte('{')
	extra := d.labels
	for i, name := range identityNames {
		for len(extra) > 0 && extra[0].Name < name {
			dst = metrics.AppendTextLabel(append(dst, sep), extra[0].Name, extra[0].Value)
			extra, sep = extra[1:], ','
		}
		if keep&(1<<i) == 0 || values[i] == "" {
			continue
		}
		dst = metrics.AppendTextLabel(append(dst, sep), name, values[i])
		sep = ','
	}
	for _, l := range extra {
		dst = metrics.AppendTextLabel(append(dst, sep), l.Name, l.Value)
		sep = ','
	}
	if sep == ',' {
		dst = append(dst, '}')
	}
	return append(dst, ' ')
}

// appendKey appends an unambiguous encoding of a name and its sorted labels, from
// which the strings of a desc can be cut.
func appendKey(dst []byte, name string, labels []agent.Label) []byte {
	dst = appendKeyPart(dst, name)
	for _, l := range labels {
		dst = appendKeyPart(dst, l.Name)
		dst = appendKeyPart(dst, l.Value)
	}
	return dst
}

// keyPart is the size of what stands before each string of a key: its length.
const keyPart = 2

func appendKeyPart(dst []byte, s string) []byte {
	dst = append(dst, byte(len(s)>>8), byte(len(s)))
	return append(dst, s...)
}
