package pubsub

import (
	"bytes"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// The contract holds over a server that takes smaller messages than the largest.
func TestNATSSmallMaxPayload(t *testing.T) {
	testContract(t, func(t testing.TB) Engine {
		s := startNATS(t, -1, func(o *server.Options) { o.MaxPayload = minMaxPayload })
		n, _ := newNATS(t, s.ClientURL(), Options{})
		runEngine(t, n)
		waitConnected(n, true)
		return n
	})
}

// Messages of all sizes that several replicas send at once arrive whole, each once,
// over a server whose max_payload is below most of them. No subscriber is notified of a
// missed one.
func TestNATSParts(t *testing.T) {
	s := startNATS(t, -1, func(o *server.Options) { o.MaxPayload = 2048 })
	var engines []*NATS
	for range 3 {
		n, log := newNATS(t, s.ClientURL(), Options{})
		runEngine(t, n)
		waitConnected(n, true)
		log.waitFor("large messages are sent in parts")
		engines = append(engines, n)
	}
	receiver := subscribe(t, engines[0], "a")
	var sending sync.WaitGroup
	want := make(map[string]int)
	for i, n := range engines {
		for j := range 4 {
			letter := string(rune('a' + 4*i + j))
			sizes := []int{1, 2047, 2048, 2049, 4000, MaxPayload}
			for _, size := range sizes {
				want[strings.Repeat(letter, size)]++
			}
			sending.Go(func() {
				for _, size := range sizes {
					if err := n.Publish(t.Context(), "a", []byte(strings.Repeat(letter, size))); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	sending.Wait()
	publish(t, engines[0], "a", "last")
	for message := range want {
		receiver.waitForAny(message)
	}
	got := make(map[string]int)
	for _, message := range receiver.waitFor("last") {
		got[message]++
	}
	delete(got, "last")
	require.Equal(t, want, got)
}

// Notifications of metadata and of the largest message of a deployment fit, too.
func TestNATSPartsOfDeployment(t *testing.T) {
	s := startNATS(t, -1, func(o *server.Options) { o.MaxPayload = 2048 })
	n, _ := newNATS(t, s.ClientURL(), Options{})
	runEngine(t, n)
	waitConnected(n, true)
	d := newDeployment(t, n, uuid.New())
	metadata := NewMetadata(d)
	ids := make(map[uuid.UUID]bool)
	got := make(chan []uuid.UUID, 10)
	cancel, err := metadata.SubscribeMetadata(func(ids []uuid.UUID) { got <- ids })
	require.NoError(t, err)
	defer cancel()
	var all []uuid.UUID
	for range maxMetadataIDs {
		all = append(all, uuid.New())
		ids[all[len(all)-1]] = true
	}
	require.NoError(t, metadata.PublishMetadata(t.Context(), all))
	message := <-got
	require.Len(t, message, len(ids))
	for _, id := range message {
		require.True(t, ids[id])
	}
}

// A server that takes less than any part has is named as what is wrong.
func TestNATSMaxPayload(t *testing.T) {
	s := startNATS(t, -1, func(o *server.Options) { o.MaxPayload = minMaxPayload - 1 })
	n, log := newNATS(t, s.ClientURL(), Options{})
	runEngine(t, n)
	waitError(n, "the NATS server takes messages of at most 511 bytes, but 512 are needed: raise its max_payload")
	log.waitFor("messages to other replicas do not arrive")
	require.Error(t, n.Publish(t.Context(), "a", []byte(strings.Repeat("p", 4000))))
}

// A message in parts is delivered only if all of it arrived. Otherwise the next part
// that arrives reports a missed message.
func TestPartsLost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var receiver assembler
		senders := []splitter{newSplitter(), newSplitter()}
		missing := make([]bool, len(senders)) // something, without a notification
		for range rapid.IntRange(1, 30).Draw(t, "messages") {
			sender := rapid.IntRange(0, len(senders)-1).Draw(t, "sender")
			limit := rapid.IntRange(minMaxPayload, MaxPayload-1).Draw(t, "limit")
			text := byte(rapid.IntRange('a', 'z').Draw(t, "text"))
			payload := bytes.Repeat([]byte{text}, rapid.IntRange(limit+1, MaxPayload).Draw(t, "bytes"))
			parts := senders[sender].split(payload, limit)
			lost := rapid.SliceOfN(rapid.IntRange(0, len(parts)-1), 0, len(parts)-1).Draw(t, "lost")
			for i, part := range parts {
				require.LessOrEqual(t, len(part), limit)
				if slices.Contains(lost, i) {
					continue
				}
				got, err := receiver.addPart(part)
				if missing[sender] {
					require.ErrorIs(t, err, errPart)
					missing[sender] = false
					continue
				}
				if first := len(lost) == 0 || i < slices.Min(lost); first {
					require.NoError(t, err)
				}
				if len(lost) == 0 && i == len(parts)-1 {
					require.Equal(t, payload, got)
				} else {
					require.Nil(t, got)
				}
				if err != nil {
					lost = append(lost, i) // notified already
				}
			}
			_, unfinished := receiver.publishers[senders[sender].publisher]
			missing[sender] = unfinished
			require.False(t, unfinished && len(lost) == 0)
		}
	})
}

// Parts that nobody sends take bounded memory, and are an error.
func TestPartsMadeUp(t *testing.T) {
	var receiver assembler
	for range 3 * maxAssembled {
		s := newSplitter()
		_, _ = receiver.addPart(s.split(bytes.Repeat([]byte("p"), MaxPayload), minMaxPayload)[0])
		require.LessOrEqual(t, len(receiver.publishers), maxAssembled)
	}
	s := newSplitter()
	parts := s.split(bytes.Repeat([]byte("p"), 2*MaxPayload), minMaxPayload)
	var err error
	for _, part := range parts {
		if _, err = receiver.addPart(part); err != nil {
			break
		}
	}
	require.ErrorIs(t, err, errPart)
	for _, data := range []string{"\x00", "\x00" + strings.Repeat("p", partHeader-1)} {
		_, err := receiver.addPart([]byte(data))
		require.ErrorContains(t, err, "a part has ")
	}
}
