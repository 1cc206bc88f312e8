package client

import (
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// isFutile reports whether trying again cannot cure an error: a bad request, a
// credential that is not coderd's, or a service without this call. accepted is true if
// the credential was accepted before: then it may be about to change, on either side.
func isFutile(err error, accepted bool) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.PermissionDenied, codes.Unimplemented:
		return true
	case codes.Unauthenticated:
		return !accepted
	}
	return false
}

const hintHTTPS = "the address is one of HTTPS: want the service's gRPC address, --grpc-address, port 2113 by default"

// hints are what to change after errors of a transport, by a part of their texts. The
// first that fits is taken.
var hints = []struct{ text, hint string }{
	{"looked like an HTTP/1.1 header", "the address is one of HTTP: want the service's gRPC address, --grpc-address, port 2113 by default"},
	{"missing selected ALPN property", hintHTTPS}, // a server without ALPN
	{"no application protocol", hintHTTPS},        // one that speaks HTTP/1.1 only
	{"first record does not look like a TLS handshake", "the address has no TLS: want the service's gRPC address, and plaintext if it is set up without TLS"},
	{"error reading server preface", "the connection was closed at its start: if the service has TLS, it must not be dialed in plaintext"},
}

// hint returns what to change after an error, as an attribute of a log line; nil: it
// says that itself.
func hint(err error) []any {
	if status.Code(err) != codes.Unavailable {
		return nil
	}
	text := err.Error()
	for _, h := range hints {
		if strings.Contains(text, h.text) {
			return []any{"hint", h.hint}
		}
	}
	return nil
}
