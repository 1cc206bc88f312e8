package optiontable

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/coder/serpent"
)

// helpWidth is how wide the help is, as terminals are at least.
const helpWidth = 80

// SetHelp gives a command, and all below it, a help with options and commands in the order
// in which they are now: serpent sorts both by their names.
func SetHelp(c *serpent.Command) {
	options, children := slices.Clone(c.Options), slices.Clone(c.Children)
	c.HelpHandler = func(inv *serpent.Invocation) error {
		_, err := io.WriteString(inv.Stdout, help(c, options, children))
		return err
	}
	for _, child := range children {
		SetHelp(child)
	}
}

func help(c *serpent.Command, options serpent.OptionSet, children []*serpent.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: %s", c.FullUsage())
	if len(children) > 0 {
		b.WriteString(" <command>")
	}
	if len(options) > 0 {
		b.WriteString(" [flags]")
	}
	b.WriteString("\n\n")
	writeWrapped(&b, c.Short, 0)
	if c.Long != "" {
		b.WriteString("\n")
		writeWrapped(&b, c.Long, 0)
	}
	width := 0
	for _, child := range children {
		width = max(width, len(child.Name()))
	}
	if len(children) > 0 {
		b.WriteString("\nCommands:\n")
	}
	for _, child := range children {
		fmt.Fprintf(&b, "  %-*s  %s\n", width, child.Name(), child.Short)
	}
	for _, g := range groupsOf(options) {
		if g.group == nil {
			b.WriteString("\nOptions:\n")
		} else {
			fmt.Fprintf(&b, "\n%s. %s\n", g.group.Name, g.group.Description)
		}
		for i := range g.options {
			o := &g.options[i]
			fmt.Fprintf(&b, "  %s\n", synopsis(o))
			writeWrapped(&b, o.Description, 10)
		}
	}
	return b.String()
}

// optionGroup are options of one group; nil: of none.
type optionGroup struct {
	group   *serpent.Group
	options serpent.OptionSet
}

// groupsOf returns the options by group, in their order. Those of no group come first: they
// are the command's own.
func groupsOf(options serpent.OptionSet) []optionGroup {
	groups := []optionGroup{{}}
	for _, o := range options {
		if o.Hidden {
			continue
		}
		i := slices.IndexFunc(groups, func(g optionGroup) bool { return g.group == o.Group })
		if i < 0 {
			i = len(groups)
			groups = append(groups, optionGroup{group: o.Group})
		}
		groups[i].options = append(groups[i].options, o)
	}
	if len(groups[0].options) == 0 {
		return groups[1:]
	}
	return groups
}

// synopsis returns the line of an option: its flag, type, variable and default.
func synopsis(o *serpent.Option) string {
	text := "--" + o.Flag
	if o.FlagShorthand != "" {
		text = "-" + o.FlagShorthand + ", " + text
	}
	if kind := typeName(o); kind != "" {
		text += " " + kind
	}
	if o.Env != "" {
		text += ", $" + o.Env
	}
	if o.Default != "" {
		text += fmt.Sprintf(" (default %s)", o.Default)
	}
	return text
}

// typeName returns the name of a value's type for people; empty: it takes none.
func typeName(o *serpent.Option) string {
	if enum, ok := o.Value.(*serpent.Enum); ok {
		return strings.Join(enum.Choices, "|")
	}
	switch kind := o.Value.Type(); kind {
	case "bool":
		return ""
	case List:
		return "list"
	case Integer:
		return "number"
	case "duration":
		return "time"
	case "string":
		return "text"
	default:
		return kind
	}
}

// writeWrapped writes a text with lines of helpWidth at most. Lines that begin with a blank
// are written as they are.
func writeWrapped(b *strings.Builder, text string, indent int) {
	margin := strings.Repeat(" ", indent)
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(line, " ") {
			b.WriteString(margin + line + "\n")
			continue
		}
		length := 0
		for word := range strings.FieldsSeq(line) {
			switch {
			case length == 0:
				b.WriteString(margin)
				length = indent
			case length+1+len(word) > helpWidth:
				b.WriteString("\n" + margin)
				length = indent
			default:
				b.WriteString(" ")
				length++
			}
			b.WriteString(word)
			length += len(word)
		}
		b.WriteString("\n")
	}
}
