package coderdapi

import (
	"context"
	"errors"
	"io"

	"github.com/coder/agentstatsd/grpcserver"
)

// received is one message of a stream, or how it ended.
type received[T any] struct {
	message T
	err     error
}

// receive reads messages in a goroutine until the stream, whose context is ctx, ends.
// So a handler can wait for a message and for something else at once. Only the handler
// processes messages and sends.
func receive[T any](ctx context.Context, server *grpcserver.Server, next func() (T, error)) <-chan received[T] {
	ch := make(chan received[T], 4)
	server.Go(func() {
		for {
			m, err := next()
			select {
			case ch <- received[T]{m, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	})
	return ch
}

// awaitFirst waits for the first message of a stream, which must have the field. The
// server bounds the time, as of all of coderd's calls.
func awaitFirst[T any](ctx context.Context, server *grpcserver.Server, messages <-chan received[T], field string) (T, error) {
	var none T
	select {
	case r := <-messages:
		if errors.Is(r.err, io.EOF) {
			return none, grpcserver.Invalid(field, "want it as the first message, got none")
		}
		return r.message, r.err
	case <-server.Draining():
		return none, grpcserver.ErrDraining
	case <-ctx.Done():
		return none, ctx.Err()
	}
}
