package decode

// call is what is kept of one of coderd's calls.
type call struct {
	// relayed is the name of a call whose request is handed over when it is accepted; empty:
	// fields of coderd's messages are kept.
	relayed string
	// unanswered: each request is handed over when it is whole.
	unanswered bool
	// fields are those that are kept of coderd's messages.
	fields *message
	// end is called with what was collected of a message.
	end func(*Connection, *collected) error
}

// calls has those of which something is kept.
var calls = map[string]*call{
	CallStats:      {relayed: CallStats},
	CallLifecycle:  {relayed: CallLifecycle},
	CallAppHealths: {relayed: CallAppHealths},
	CallMetadata:   {relayed: CallMetadata},
	CallCoordinate: {relayed: CallCoordinate, unanswered: true},

	"/coder.agent.v2.Agent/GetManifest":        {fields: manifestFields, end: endManifest},
	"/coder.tailnet.v2.Tailnet/StreamDERPMaps": {fields: derpMapFields, end: endDERPMap},
}

// beginMessage handles the beginning of a message.
func (s *stream) beginMessage(c *Connection, fromAgent bool) error {
	switch {
	case s.call == nil:
	case s.call.relayed != "":
		// A unary call has one message; coderd reads no other one.
		if fromAgent && !s.whole {
			s.request.free(c.budget)
			s.request, s.oversize = nil, false
		}
	case !fromAgent:
		s.walker.free(c.budget) // of a message that another one replaces
		if s.walker = newWalker(c.budget, s.call.fields); s.walker == nil {
			return errMemory
		}
	}
	return nil
}

// messageData handles a part of a message.
func (s *stream) messageData(c *Connection, fromAgent bool, b []byte) error {
	switch {
	case s.call == nil:
	case s.call.relayed != "":
		if !fromAgent || s.whole || s.oversize {
			return nil
		}
		if s.agent.size > maxRequest {
			s.oversize = true
			s.request.free(c.budget)
			s.request = nil
			c.skipped++
			return nil
		}
		if s.request == nil {
			s.request, _ = buffers.Get().(*buffer)
		}
		// The frame's length is what the agent says. Only what comes is believed.
		size := len(s.request.b) + len(b)
		if s.agent.left < largestPooled {
			size += int(s.agent.left)
		}
		if !s.request.append(c.budget, b, size) {
			return errMemory
		}
	case !fromAgent:
		return s.walker.read(b)
	}
	return nil
}

// endMessage handles the end of a message.
func (s *stream) endMessage(c *Connection, fromAgent bool) error {
	switch {
	case s.call == nil:
		return nil
	case s.call.unanswered:
		if !fromAgent {
			return nil
		}
		return s.handOver(c)
	case s.call.relayed != "":
		if fromAgent {
			s.whole = true
			return nil
		}
		return s.accepted(c)
	case !fromAgent:
		kept, err := s.walker.end()
		s.walker.free(c.budget)
		s.walker = nil
		if err != nil {
			return err
		}
		return s.call.end(c, kept)
	}
	return nil
}

// accepted handles coderd's answer to a relayed call.
func (s *stream) accepted(c *Connection) error {
	if !s.whole {
		return NewError(ReasonDRPC, "dRPC: an answer comes before the request")
	}
	err := s.handOver(c)
	s.call = nil
	return err
}

// handOver hands over the request, unless it was too large to be kept.
func (s *stream) handOver(c *Connection) error {
	request := s.request
	s.request = nil
	if s.oversize {
		return nil
	}
	if request == nil { // of no bytes
		request, _ = buffers.Get().(*buffer)
	}
	return c.accept(s.call.relayed, request)
}

// forget drops what is kept of a call.
func (c *Connection) forget(s *stream) {
	s.request.free(c.budget)
	s.walker.free(c.budget)
	s.call, s.request, s.walker, s.name = nil, nil, nil, nil
}
