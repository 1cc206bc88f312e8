package targets

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// startTimeName is the family that tells one process of coderd from the next.
const startTimeName = "process_start_time_seconds"

// forwardedHelp is the help of all families that a coderd forwards for its agents.
const forwardedHelp = "Metrics are forwarded from workspace agents connected to this instance of coderd."

const (
	// maxFamilies of a scrape are ten times what the service takes in by default.
	maxFamilies = 20_000
	// textFamily is how much longer a family may be in the text format than encoded.
	textFamily = 4
	// maxLeftOut families of a scrape are kept by name, for the log.
	maxLeftOut = 64
)

// snapshot is what a target had at one scrape.
type snapshot struct {
	// families are encoded io.prometheus.client.MetricFamily messages.
	families [][]byte
	samples  int
	// leftOut are the first families that are, reasons how many are for each.
	leftOut []leftOut
	reasons map[string]int
	// start is the process's start time; 0: it does not say.
	start float64
}

// leftOut is why a family is not pushed.
type leftOut struct{ name, reason, message string }

// collector makes a snapshot of families, one after another.
type collector struct {
	snapshot
	maxFamilyBytes int
	// skip returns why a family is left out, by its name and help; empty: it is not.
	skip func(name, help string) string
}

func (c *collector) leaveOut(name, reason, message string) {
	if c.reasons == nil {
		c.reasons = make(map[string]int)
	}
	if c.reasons[reason]++; len(c.leftOut) < maxLeftOut {
		c.leftOut = append(c.leftOut, leftOut{strings.ToValidUTF8(name, "\uFFFD"), reason, message})
	}
}

// isFull reports whether no more families are taken in, and leaves the named one out then.
func (c *collector) isFull(name string) bool {
	if len(c.families) < maxFamilies {
		return false
	}
	c.leaveOut(name, reasonTooMany, fmt.Sprintf("at most %d families of a scrape are pushed", maxFamilies))
	return true
}

// leaveOutLarge leaves out a family that does not fit into a message.
func (c *collector) leaveOutLarge(name, help string) {
	if reason := c.skip(name, help); reason != "" {
		c.leaveOut(name, reason, "")
		return
	}
	c.leaveOut(name, reasonMessageSize, fmt.Sprintf("has more than the %d bytes that fit into a message", c.maxFamilyBytes))
}

// addEncoded adds an encoded family.
func (c *collector) addEncoded(encoded []byte) {
	name, help := nameAndHelp(encoded)
	reason := c.skip(name, help)
	if reason != "" && name != startTimeName {
		c.leaveOut(name, reason, "")
		return
	}
	var family dto.MetricFamily
	if err := proto.Unmarshal(encoded, &family); err != nil {
		c.leaveOut(name, reasonMalformed, err.Error())
		return
	}
	c.addStart(&family)
	if reason != "" {
		c.leaveOut(name, reason, "")
		return
	}
	c.add(&family, encoded)
}

// addStart takes the start time of the process, which is read even if it is not pushed.
func (c *collector) addStart(family *dto.MetricFamily) {
	if family.GetName() == startTimeName && len(family.Metric) == 1 {
		m := family.Metric[0]
		c.start = m.GetGauge().GetValue() + m.GetUntyped().GetValue()
	}
}

// addParsed adds a family of the text format.
func (c *collector) addParsed(family *dto.MetricFamily) {
	c.addStart(family)
	if reason := c.skip(family.GetName(), family.GetHelp()); reason != "" {
		c.leaveOut(family.GetName(), reason, "")
		return
	}
	encoded, err := proto.Marshal(family)
	if err != nil {
		c.leaveOut(family.GetName(), reasonMalformed, err.Error())
		return
	}
	c.add(family, encoded)
}

func (c *collector) add(family *dto.MetricFamily, encoded []byte) {
	if len(encoded) > c.maxFamilyBytes {
		c.leaveOutLarge(family.GetName(), family.GetHelp())
		return
	}
	if c.isFull(family.GetName()) {
		return
	}
	for _, m := range family.Metric {
		c.samples += samples(m)
	}
	c.families = append(c.families, encoded)
}

// samples returns how many lines a series has in the text format.
func samples(m *dto.Metric) int {
	switch {
	case m.Histogram != nil:
		return len(m.Histogram.Bucket) + 2
	case m.Summary != nil:
		return len(m.Summary.Quantile) + 2
	}
	return 1
}

// nameAndHelp reads both of an encoded family, as far as they can be read.
func nameAndHelp(encoded []byte) (name, help string) {
	for len(encoded) > 0 {
		field, kind, n := protowire.ConsumeTag(encoded)
		if n < 0 {
			return name, help
		}
		encoded = encoded[n:]
		n = protowire.ConsumeFieldValue(field, kind, encoded)
		if n < 0 {
			return name, help
		}
		if text, size := protowire.ConsumeBytes(encoded[:n]); kind == protowire.BytesType && size >= 0 {
			switch field {
			case 1:
				name = string(text)
			case 2:
				help = string(text)
			}
		}
		encoded = encoded[n:]
	}
	return name, help
}

// readDelimited adds the families of a body of delimited messages. An error is one of
// the reading, or of the lengths between them.
func (c *collector) readDelimited(body *bufio.Reader) error {
	for {
		size, err := readLength(body)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if size > uint64(c.maxFamilyBytes) {
			first, _ := body.Peek(int(min(size, uint64(body.Size()))))
			c.leaveOutLarge(nameAndHelp(first))
			if n, err := io.CopyN(io.Discard, body, int64(size)); err != nil {
				return cutShort(n, size, err)
			}
			continue
		}
		// The buffer grows with what comes, not with what is said to come.
		var b bytes.Buffer
		if n, err := io.CopyN(&b, body, int64(size)); err != nil {
			return cutShort(n, size, err)
		}
		c.addEncoded(bytes.Clone(b.Bytes()))
	}
}

// cutShort returns the error of a family of which only n bytes could be read.
func cutShort(n int64, size uint64, err error) error {
	if errors.Is(err, io.EOF) {
		return malformed("a family ends after %d of %d bytes", n, size)
	}
	return err
}

// readLength reads the length before a message; io.EOF: there is none.
func readLength(body *bufio.Reader) (uint64, error) {
	var b []byte
	for {
		next, err := body.ReadByte()
		if errors.Is(err, io.EOF) && len(b) > 0 {
			return 0, malformed("the length of a family ends early")
		}
		if err != nil {
			return 0, err
		}
		b = append(b, next)
		if next < 0x80 {
			break
		}
		if len(b) == 10 {
			return 0, malformed("the length of a family is none")
		}
	}
	size, n := protowire.ConsumeVarint(b)
	if n < 0 || size > 1<<40 {
		return 0, malformed("the length of a family is none")
	}
	return size, nil
}

// readText adds the families of a body in the text format. Its lines are cut into those
// of one family each, so that a broken one costs no other.
func (c *collector) readText(body *bufio.Reader) error {
	var lines []byte
	name := ""
	large := false // lines are not all of the family
	finish := func(lines []byte) {
		if large {
			c.leaveOutLarge(name, helpOf(lines))
			return
		}
		c.parse(name, lines)
	}
	for {
		if len(lines) > textFamily*c.maxFamilyBytes {
			end := bytes.IndexByte(lines, '\n') + 1
			lines, large = lines[:end], true // the help
		}
		line, err := body.ReadSlice('\n')
		start := len(lines)
		for errors.Is(err, bufio.ErrBufferFull) {
			lines = append(lines, line...)
			line, err = body.ReadSlice('\n')
		}
		lines = append(lines, line...)
		if next, ok := lineFamily(lines[start:], name); ok && next != name {
			finish(lines[:start])
			lines, name, large = append([]byte(nil), lines[start:]...), next, false
		}
		if errors.Is(err, io.EOF) {
			finish(append(lines, '\n'))
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// lineFamily returns the family of a line after lines of a family; false: it may be of
// any, as a comment is. What cannot be read is of a family without a name.
func lineFamily(line []byte, before string) (string, bool) {
	line = bytes.TrimLeft(line, " \t")
	if comment, ok := bytes.CutPrefix(line, []byte("#")); ok {
		fields := bytes.Fields(comment)
		if len(fields) >= 2 && (string(fields[0]) == "HELP" || string(fields[0]) == "TYPE") {
			return string(fields[1]), true
		}
		return "", false
	}
	if len(bytes.TrimSpace(line)) == 0 {
		return "", false
	}
	name := string(line[:max(0, bytes.IndexAny(line, "{ \t\r\n"))])
	if rest, ok := strings.CutPrefix(name, before); ok && before != "" {
		switch rest {
		case "", "_bucket", "_count", "_sum":
			return before, true
		}
	}
	return name, true
}

// parse adds the families of lines, most often one.
func (c *collector) parse(name string, lines []byte) {
	if len(bytes.TrimSpace(lines)) == 0 {
		return
	}
	if reason := c.skip(name, helpOf(lines)); reason != "" && name != startTimeName {
		c.leaveOut(name, reason, "")
		return
	}
	if name != startTimeName && c.isFull(name) {
		return
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(lines))
	if err != nil {
		c.leaveOut(name, reasonMalformed, err.Error())
		return
	}
	for _, family := range families {
		if len(family.Metric) > 0 {
			c.addParsed(family)
		}
	}
}

// helpOf returns the help of lines that begin with it; empty: they do not.
func helpOf(lines []byte) string {
	first, _, _ := bytes.Cut(lines, []byte("\n"))
	fields := strings.SplitN(string(first), " ", 4)
	if len(fields) < 4 || fields[0] != "#" || fields[1] != "HELP" {
		return ""
	}
	return fields[3]
}

// malformedError is why a whole body cannot be read.
type malformedError struct{ text string }

func (e *malformedError) Error() string { return e.text }

func malformed(format string, args ...any) error {
	return &malformedError{fmt.Sprintf(format, args...)}
}
