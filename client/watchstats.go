package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxWatchName is the longest name of a watch, in bytes.
const maxWatchName = 64

// WatchStats watches the reports of at most 1000 agents; nil: of all agents. It
// calls news with each agent's stats: counts since its last entry, the rest as
// it was reported last. If news is slow, more reports are in one entry.
//
// The service keeps what is reported while the stream is broken, under the name
// of the watch, 1 to 64 bytes, for 10 min. Each report is told once, however
// often the stream breaks: the entries of a call count as processed when news
// returns. If name is empty, nothing is kept. A name is of one watcher at a
// time: another one that takes it breaks the stream of this one, which then
// takes it back, and what was on the way may be told to both. A later call with
// the name goes on where this one ended; if the service did not learn of the
// last call of news, as the process died or the service could not be reached
// when ctx ended, those entries are told again. A restart of the whole service
// forgets all names: what it has not told by then is lost. Of several replicas
// one that stops hands over to the others; one that is killed cannot.
//
// It blocks and returns as WatchMetadata does, but when ctx ends it waits for
// news to return, and at most 5 s for the service to know that.
func (c *Coderd) WatchStats(ctx context.Context, name string, agentIDs []uuid.UUID, news func([]*agentstatsv1.AgentStats)) error {
	if len(agentIDs) > maxWatchAgents {
		return fmt.Errorf("watch stats: %d agents are named, at most %d may be", len(agentIDs), maxWatchAgents)
	}
	if len(name) > maxWatchName {
		return fmt.Errorf("watch stats: the name has %d bytes, at most %d are allowed", len(name), maxWatchName)
	}
	w := &statsWatch{
		service: c.service,
		next:    &agentstatsv1.WatchStatsRequest{Name: name, AgentIds: idBytes(agentIDs)},
		news:    news,
	}
	return c.keepWatching(ctx, "stats", func() (bool, error) { return w.follow(ctx) })
}

// statsWatch is a watch of stats over all its streams.
type statsWatch struct {
	service agentstatsv1.CoderdServiceClient
	news    func([]*agentstatsv1.AgentStats)
	// next is the first request of the next stream. It has the epoch and the
	// sequence of the last response that news has returned from.
	next *agentstatsv1.WatchStatsRequest
}

// follow serves one stream until it ends, and tells whether there was any news.
// When ctx ends, the service takes in the last ack before the stream ends.
func (w *statsWatch) follow(ctx context.Context) (told bool, err error) {
	live, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	// Until the stream stands, the end of ctx may cut it off.
	stop := context.AfterFunc(ctx, cancel)
	stream, err := w.service.WatchStats(live, grpc.MaxCallRecvMsgSize(maxReadBytes))
	if err != nil {
		stop()
		return false, err
	}
	s := &statsStream{stream: stream, responses: make(chan *agentstatsv1.WatchStatsResponse), done: make(chan struct{})}
	go s.receive(live)
	defer func() {
		cancel()
		<-s.done
	}()
	err = s.send(w.next)
	stop()
	if err != nil {
		return false, err
	}
	for {
		select {
		case resp := <-s.responses:
			if ctx.Err() != nil {
				s.end(cancel)
				return told, ctx.Err()
			}
			told = true
			w.news(resp.GetAgents())
			w.next.Epoch, w.next.AckedSequence = resp.GetEpoch(), resp.GetSequence()
			if err := s.send(&agentstatsv1.WatchStatsRequest{AckedSequence: resp.GetSequence()}); err != nil {
				return told, err
			}
		case <-s.done:
			return told, s.err
		case <-ctx.Done():
			s.end(cancel)
			return told, ctx.Err()
		}
	}
}

// statsStream is one stream of a watch of stats.
type statsStream struct {
	stream    grpc.BidiStreamingClient[agentstatsv1.WatchStatsRequest, agentstatsv1.WatchStatsResponse]
	responses chan *agentstatsv1.WatchStatsResponse
	// done is closed when receive has ended. Then err may be read.
	done chan struct{}
	err  error
}

// receive takes in responses until the stream ends.
func (s *statsStream) receive(ctx context.Context) {
	defer close(s.done)
	for {
		resp, err := s.stream.Recv()
		if errors.Is(err, io.EOF) {
			err = errors.New("the service ended the stream")
		}
		if err != nil {
			s.err = err
			return
		}
		select {
		case s.responses <- resp:
		case <-ctx.Done():
			s.err = ctx.Err()
			return
		}
	}
}

func (s *statsStream) send(req *agentstatsv1.WatchStatsRequest) error {
	err := s.stream.Send(req)
	if errors.Is(err, io.EOF) {
		s.drain()
		return s.err
	}
	return err
}

// drain waits for the end of the stream. A response that comes meanwhile stays
// with the service.
func (s *statsStream) drain() {
	for {
		select {
		case <-s.responses:
		case <-s.done:
			return
		}
	}
}

// end waits until the service has taken in what was sent, or calls cancel after
// finalTimeout.
func (s *statsStream) end(cancel func()) {
	guard := time.AfterFunc(finalTimeout, cancel)
	defer guard.Stop()
	if err := s.stream.CloseSend(); err == nil {
		s.drain()
	}
}
