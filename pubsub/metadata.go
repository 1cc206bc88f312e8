package pubsub

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
)

// MetadataChannel carries which agents have new metadata in the database. The
// payload is Coder's.
const MetadataChannel = "workspace_agent_metadata_batch"

const (
	// idText is one id: 16 bytes in unpadded base64.
	idText = 22
	// maxMetadataIDs is how many ids one message has: 362 of 22 bytes are 7,964.
	maxMetadataIDs = MaxDeploymentPayload / idText
)

// Each value has one text only: trailing bits must be zero.
var idEncoding = base64.StdEncoding.WithPadding(base64.NoPadding).Strict()

// Metadata carries notifications of changed metadata over a PubSub.
type Metadata struct {
	ps PubSub
}

// NewMetadata returns a Metadata over ps.
func NewMetadata(ps PubSub) *Metadata {
	return &Metadata{ps: ps}
}

// PublishMetadata publishes that the metadata of agents has changed, each once, in
// as many messages as it takes. An error means that some of the messages may not
// have been sent.
func (m *Metadata) PublishMetadata(ctx context.Context, ids []uuid.UUID) error {
	ids = slices.Clone(ids)
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
	ids = slices.Compact(ids)
	payload := make([]byte, 0, idText*min(len(ids), maxMetadataIDs))
	var errs []error
	for part := range slices.Chunk(ids, maxMetadataIDs) {
		payload = appendMetadata(payload[:0], part)
		if err := m.ps.Publish(ctx, MetadataChannel, payload); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("publish notification of metadata: %w", err)
	}
	return nil
}

// SubscribeMetadata calls f with the agents of each message, one call at a time. f
// may keep ids. f(nil) means that notifications may have been missed: read
// everything again. f must not block for long, nor call cancel. After cancel has
// returned f is not called.
func (m *Metadata) SubscribeMetadata(f func(ids []uuid.UUID)) (cancel func(), err error) {
	cancel, err = m.ps.Subscribe(MetadataChannel, func(payload []byte) {
		// Missed, or not ours: either way what it meant is not known.
		ids, _ := parseMetadata(payload)
		f(ids)
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to notifications of metadata: %w", err)
	}
	return cancel, nil
}

// appendMetadata appends the payload that names ids.
func appendMetadata(dst []byte, ids []uuid.UUID) []byte {
	for i := range ids {
		dst = idEncoding.AppendEncode(dst, ids[i][:])
	}
	return dst
}

// parseMetadata returns the ids that payload names; ok is false if it names
// none, or if any of it is malformed.
func parseMetadata(payload []byte) (ids []uuid.UUID, ok bool) {
	if len(payload) == 0 || len(payload)%idText != 0 || len(payload) > idText*maxMetadataIDs {
		return nil, false
	}
	ids = make([]uuid.UUID, 0, len(payload)/idText)
	for text := range slices.Chunk(payload, idText) {
		var id [18]byte // what 24 characters would give; 22 give 16
		n, err := idEncoding.Decode(id[:], text)
		// Line breaks are skipped by the decoder, and make it shorter.
		if err != nil || n != len(uuid.UUID{}) {
			return nil, false
		}
		ids = append(ids, uuid.UUID(id[:n]))
	}
	return ids, true
}
