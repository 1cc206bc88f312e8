package operator

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/dustin/go-humanize"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// table is an aligned one for people.
type table struct {
	b bytes.Buffer
	w *tabwriter.Writer
}

// newTable returns a table with the names of its columns, without which it has none.
func newTable(columns ...string) *table {
	t := &table{}
	t.w = tabwriter.NewWriter(&t.b, 0, 0, 2, ' ', 0)
	if len(columns) > 0 {
		t.row(columns...)
	}
	return t
}

// row adds a row. Cells may be what users have named: nothing in them reaches a terminal
// as a command.
func (t *table) row(cells ...string) {
	for i, cell := range cells {
		cells[i] = shown(cell)
	}
	_, _ = io.WriteString(t.w, strings.Join(cells, "\t")+"\n") // to memory
}

// String returns the table, without blanks at the ends of its lines.
func (t *table) String() string {
	_ = t.w.Flush()
	var b strings.Builder
	for line := range strings.Lines(t.b.String()) {
		b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return b.String()
}

// shown returns a text on one line, with an escape for each character that a terminal
// may take for a command, or that changes the order of what is read.
func shown(text string) string {
	var b strings.Builder
	for _, r := range text {
		if unicode.IsGraphic(r) {
			b.WriteRune(r)
			continue
		}
		b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
	}
	return b.String()
}

// number returns a count, or a mean of counts with one decimal place.
func number(n float64) string { return strconv.FormatFloat(math.Round(10*n)/10, 'f', -1, 64) }

// optionalNumber returns a count, empty if it is not known.
func optionalNumber(n *float64) string {
	if n == nil {
		return ""
	}
	return number(*n)
}

// size returns a number of bytes.
func size(n float64) string { return humanize.IBytes(uint64(max(n, 0))) }

// span returns a time in its two largest units.
func span(d time.Duration) string {
	d = max(d, 0)
	for _, u := range []struct {
		of, part time.Duration
		name     string
		partName string
	}{{24 * time.Hour, time.Hour, "d", "h"}, {time.Hour, time.Minute, "h", "m"}, {time.Minute, time.Second, "m", "s"}} {
		if d < u.of {
			continue
		}
		text := fmt.Sprintf("%d%s", d/u.of, u.name)
		if rest := d % u.of / u.part; rest > 0 {
			text += fmt.Sprintf("%d%s", rest, u.partName)
		}
		return text
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

// seconds returns a time in seconds as span does, and shorter ones with three digits.
func seconds(s float64) string {
	if s < 1 {
		return strconv.FormatFloat(math.Round(s*1000)/1000, 'f', -1, 64) + "s"
	}
	return span(time.Duration(s * float64(time.Second)))
}

// ago returns how long ago t was; empty without one.
func ago(now time.Time, t *timestamppb.Timestamp) string {
	if !t.IsValid() {
		return ""
	}
	return span(now.Sub(t.AsTime())) + " ago"
}

// document is what --json prints.
type document struct {
	Asked []askedDocument `json:"asked"`
	// Answer is the answer of AdminService that is made of all replicas' answers; Answers
	// are several.
	Answer  json.RawMessage   `json:"answer,omitempty"`
	Answers []json.RawMessage `json:"answers,omitempty"`
}

// askedDocument is a replica that was asked, or was not.
type askedDocument struct {
	// Address is empty of one that lives and was not asked.
	Address string `json:"address"`
	Replica string `json:"replica"`
	ID      string `json:"id"`
	// Error says why it has not answered; empty: it has.
	Error string `json:"error"`
}

// documents returns who was asked.
func (a *asked) documents() []askedDocument {
	all := []askedDocument{}
	for _, r := range a.reached {
		all = append(all, askedDocument{r.dial, r.self.GetName(), r.self.GetId(), ""})
	}
	for _, r := range a.away {
		all = append(all, askedDocument{r.dial, r.self.GetName(), r.self.GetId(), r.err.Error()})
	}
	for _, u := range a.unasked {
		all = append(all, askedDocument{"", u.GetName(), u.GetId(), "no address was given"})
	}
	return all
}

// inJSON has the names of fields as the contract has them, also of those that are empty.
var inJSON = protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}

// printMessage prints a document with an answer.
func (a *asked) printMessage(w io.Writer, m proto.Message) error {
	text, err := inJSON.Marshal(m)
	if err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	return printJSON(w, document{Asked: a.documents(), Answer: text})
}

// answersOf returns a document with several answers.
func answersOf[T proto.Message](a *asked, all []T) (document, error) {
	d := document{Asked: a.documents(), Answers: []json.RawMessage{}}
	for _, m := range all {
		text, err := inJSON.Marshal(m)
		if err != nil {
			return d, fmt.Errorf("print JSON: %w", err)
		}
		d.Answers = append(d.Answers, text)
	}
	return d, nil
}

// printJSON prints a value with the indents of people.
func printJSON(w io.Writer, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	return print(w, string(text)+"\n")
}

// print writes a text.
func print(w io.Writer, text string) error {
	if _, err := io.WriteString(w, text); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}
