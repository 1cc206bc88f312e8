package grpcserver

import "fmt"

// Reconfigure changes the limits while the server serves. What there is above a lowered one
// stays. Streams that are open keep MaxMessageBytes. Credentials, CoderdClientSAN, MaxStreams,
// ConnectionIdleTimeout, HelloTimeout and Reflection are those of New. The tokens are those
// of SetTokens. After an error nothing has changed.
func (s *Server) Reconfigure(opts Options) error {
	before := s.opts.Load()
	opts.Credentials, opts.CoderdClientSAN, opts.Reflection = before.Credentials, before.CoderdClientSAN, before.Reflection
	opts.Tokens = before.Tokens
	opts.MaxStreams = before.MaxStreams
	opts.ConnectionIdleTimeout, opts.HelloTimeout = before.ConnectionIdleTimeout, before.HelloTimeout
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return fmt.Errorf("grpcserver options: %w", err)
	}
	s.opts.Store(&opts)
	s.connections.setLimits(&opts)
	s.agentStreams.setLimit(opts.MaxStreamsPerAgent)
	s.coderdCalls.SetLimit(opts.MaxCoderdCalls)
	s.pusherCalls.SetLimit(pusherCalls(&opts))
	for role, limit := range receivingLimits(&opts, s.receiving[rolePusher] != nil) {
		s.receiving[role].setLimit(limit)
	}
	s.unread.setLimits(opts.MaxStreamsPerAgent, opts.MaxUnreadOfCoderd)
	return nil
}

func (a *agentStreams) setLimit(limit int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.limit = limit
}

func (u *unreadStreams) setLimits(limit, coderdLimit int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.limit, u.coderdLimit = limit, coderdLimit
}
