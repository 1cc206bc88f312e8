package metrics

import (
	"bytes"
	"fmt"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"
)

// Rendered is a family that is rendered in both formats. It is never changed.
type Rendered struct {
	Name, Help string
	Type       Type
	// Text is in the text format 0.0.4. Of native histograms it has the classic
	// buckets. TextSeries is its part below HELP and TYPE.
	Text, TextSeries []byte
	// Protobuf is a delimited io.prometheus.client.MetricFamily message.
	// ProtobufSeries is its part with the metrics.
	Protobuf, ProtobufSeries []byte
}

// Render renders a family that has metrics. It returns an error if they are not of
// the family's type.
func Render(f *dto.MetricFamily, t Type) (*Rendered, error) {
	var text, protobuf bytes.Buffer
	if _, err := expfmt.MetricFamilyToText(&text, f); err != nil {
		return nil, fmt.Errorf("render %s as text: %w", f.GetName(), err)
	}
	if _, err := protodelim.MarshalTo(&protobuf, f); err != nil {
		return nil, fmt.Errorf("render %s as protobuf: %w", f.GetName(), err)
	}
	r := &Rendered{Name: f.GetName(), Help: f.GetHelp(), Type: t, Text: text.Bytes(), Protobuf: protobuf.Bytes()}
	r.TextSeries = r.Text
	for len(r.TextSeries) > 0 && r.TextSeries[0] == '#' {
		r.TextSeries = r.TextSeries[bytes.IndexByte(r.TextSeries, '\n')+1:]
	}
	// The metrics are the last field.
	r.ProtobufSeries = r.Protobuf[len(r.Protobuf)-proto.Size(&dto.MetricFamily{Metric: f.Metric}):]
	return r, nil
}
