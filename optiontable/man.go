package optiontable

import (
	"fmt"
	"io"
	"strings"

	"github.com/coder/serpent"
)

// roff escapes what roff would take for its own.
var roff = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\n.", "\n\\&.", "\n'", "\n\\&'")

// Man writes a manual page in the form of man(7): the command, and those below it with
// their options, in their order. Serpent sorts those of a command that runs.
func Man(w io.Writer, root *serpent.Command, version string) error {
	var b strings.Builder
	name := root.Name()
	fmt.Fprintf(&b, ".TH %s 1 \"\" \"%s\"\n", strings.ToUpper(name), roff.Replace(name+" "+version))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", name, roff.Replace(root.Short))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n.I command\n[flags]\n", name)
	b.WriteString(".SH DESCRIPTION\n")
	manText(&b, root.Long)
	for _, c := range root.Children {
		manCommand(&b, "", c)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// manCommand writes a command and those below it. parents are the names of those above.
func manCommand(b *strings.Builder, parents string, c *serpent.Command) {
	fmt.Fprintf(b, ".SH COMMAND %s\n", strings.ToUpper(roff.Replace(parents+c.Use)))
	manText(b, c.Short)
	if c.Long != "" {
		b.WriteString(".PP\n")
		manText(b, c.Long)
	}
	for _, g := range groupsOf(c.Options) {
		if g.group != nil {
			fmt.Fprintf(b, ".SS %s\n%s\n", roff.Replace(g.group.Name), roff.Replace(g.group.Description))
		}
		for i := range g.options {
			o := &g.options[i]
			fmt.Fprintf(b, ".TP\n.B %s\n%s\n", roff.Replace(synopsis(o)), roff.Replace(o.Description))
			if path := o.YAMLPath(); path != "" {
				fmt.Fprintf(b, "In the file: %s.\n", roff.Replace(path))
			}
		}
	}
	for _, child := range c.Children {
		manCommand(b, parents+c.Name()+" ", child)
	}
}

// manText writes paragraphs. Lines that begin with a blank are examples.
func manText(b *strings.Builder, text string) {
	for line := range strings.SplitSeq(text, "\n") {
		switch {
		case line == "":
			b.WriteString(".PP\n")
		case strings.HasPrefix(line, " "):
			fmt.Fprintf(b, ".nf\n%s\n.fi\n", roff.Replace(line))
		default:
			b.WriteString(strings.TrimPrefix(roff.Replace("\n"+line), "\n") + "\n")
		}
	}
}
