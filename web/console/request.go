package console

import (
	"net/http"
	"net/url"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Bounds of a query. The service bounds the values.
const (
	maxParameters = 64
	maxValueBytes = 1024
)

// fillStrictly sets the fields of a request: of the path, and of the query, which may
// have no other parameters. An error is a requestError.
func fillStrictly(req proto.Message, r *http.Request) error {
	query, err := parseQuery(r)
	if err != nil {
		return err
	}
	fields := req.ProtoReflect().Descriptor().Fields()
	for name := range query {
		if fields.ByName(protoreflect.Name(name)) == nil {
			return invalid("%q is no parameter here", name)
		}
	}
	return fill(req, r, query)
}

// fill sets the fields of a request of the path and of the parameters that have their
// names. An empty parameter is as one that is not there. An error is a requestError.
func fill(req proto.Message, r *http.Request, query url.Values) error {
	m := req.ProtoReflect()
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		name := string(field.Name())
		values := query[name]
		if value := r.PathValue(name); value != "" {
			values = []string{value}
		}
		for n, text := range values {
			if text == "" {
				continue
			}
			value, err := parse(field, text)
			switch {
			case err != nil:
				return err
			case !utf8.ValidString(text): // no message may have it, the answer neither
				return invalid("%s: want UTF-8, got %.64q", name, text)
			case field.IsList():
				m.Mutable(field).List().Append(value)
			case n > 0:
				return invalid("%s: want one value, got %d", name, len(values))
			default:
				m.Set(field, value)
			}
		}
	}
	return nil
}

// parseQuery returns the parameters of a query, within their bounds.
func parseQuery(r *http.Request) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, invalid("the query cannot be read")
	}
	count := 0
	for name, values := range query {
		count += len(values)
		for _, value := range values {
			if len(value) > maxValueBytes {
				return nil, invalid("%.64q: want at most %d bytes, got %d", name, maxValueBytes, len(value))
			}
		}
	}
	if count > maxParameters {
		return nil, invalid("want at most %d parameters, got %d", maxParameters, count)
	}
	return query, nil
}

func parse(field protoreflect.FieldDescriptor, text string) (protoreflect.Value, error) {
	switch field.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(text), nil
	case protoreflect.Int32Kind:
		n, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			return protoreflect.Value{}, invalid("%s: want an integer, got %.64q", field.Name(), text)
		}
		return protoreflect.ValueOfInt32(int32(n)), nil
	default:
		return protoreflect.Value{}, invalid("%s cannot be set", field.Name())
	}
}
