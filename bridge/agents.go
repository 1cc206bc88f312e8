package bridge

import (
	"context"
	"errors"
	"log/slog"
	"strings"

	"github.com/coder/agentstatsd/bridge/internal/copies"
	"github.com/coder/agentstatsd/bridge/internal/decode"
	"github.com/coder/agentstatsd/bridge/internal/proxy"
	"github.com/coder/agentstatsd/bridge/internal/relaying"
)

// decoder decodes and relays the connection of an agent.
type decoder struct {
	*decode.Connection
	relayed *relaying.Connection
	metrics *metrics
}

// Close implements copies.Decoder.
func (d *decoder) Close() {
	d.metrics.decoders.Dec()
	d.metrics.skipped.Add(float64(d.Skipped()))
	d.Connection.Close()
	d.relayed.Close()
}

// open returns the Copy of a connection; nil: it is not decoded.
func (b *Bridge) open(h proxy.Handshake) proxy.Copy {
	major, _, _ := strings.Cut(h.Version, ".")
	switch {
	case major != "" && major != "2": // without a version it is 2.0
		b.giveUp(decode.NewError(reasonVersion, "want version 2 of the agent API"))
		return nil
	case h.Extensions != "":
		b.giveUp(decode.NewError(reasonExtension, "want no extension of WebSocket"))
		return nil
	}
	relayed := b.relaying.Open()
	connection, err := decode.NewConnection(relayed, b.budget)
	if err != nil {
		b.giveUp(err)
		return nil
	}
	b.metrics.decoders.Inc()
	return b.copies.Open(&decoder{connection, relayed, b.metrics}, b.giveUp)
}

// giveUp counts and logs a connection that goes on without being decoded.
func (b *Bridge) giveUp(err error) {
	reason := copies.ReasonPanic
	if ended := (*decode.Error)(nil); errors.As(err, &ended) {
		reason = ended.Reason
	}
	b.metrics.ended.WithLabelValues(string(reason)).Inc()
	b.givenUp.Log(context.Background(), b.log, slog.LevelWarn, "connections", 1, "a connection of an agent is not decoded any more, and goes on",
		"reason", string(reason), "error", err)
}
