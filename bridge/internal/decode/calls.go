package decode

// call is what is kept of one of coderd's calls.
type call struct {
	// relayed is the name of a call whose request is handed over when it is accepted; empty:
	// fields of its messages are kept.
	relayed string
	// ofAgent has the fields of the agent's messages, ofCoderd those of coderd's; nil: none.
	ofAgent, ofCoderd *message
	// end is called with what was collected of a message.
	end func(*Connection, *collected) error
}

// calls has those of which something is kept.
var calls = map[string]*call{
	CallStats:      {relayed: CallStats},
	CallLifecycle:  {relayed: CallLifecycle},
	CallAppHealths: {relayed: CallAppHealths},
	CallMetadata:   {relayed: CallMetadata},

	"/coder.agent.v2.Agent/GetManifest":        {ofCoderd: manifestFields, end: endManifest},
	"/coder.tailnet.v2.Tailnet/Coordinate":     {ofAgent: coordinateFields, end: endCoordinate},
	"/coder.tailnet.v2.Tailnet/StreamDERPMaps": {ofCoderd: derpMapFields, end: endDERPMap},
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
	case s.fields(fromAgent) != nil:
		if s.walker == nil {
			s.walker = new(walker)
		}
		s.walker.begin(s.fields(fromAgent))
	}
	return nil
}

// fields returns those that are kept of one side's messages; nil: none.
func (s *stream) fields(fromAgent bool) *message {
	if fromAgent {
		return s.call.ofAgent
	}
	return s.call.ofCoderd
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
			return NewError(ReasonMemory, "keep a call: the memory of all decoders is used up")
		}
	case s.fields(fromAgent) != nil:
		return s.walker.read(b)
	}
	return nil
}

// endMessage handles the end of a message.
func (s *stream) endMessage(c *Connection, fromAgent bool) error {
	switch {
	case s.call == nil:
		return nil
	case s.call.relayed != "":
		if fromAgent {
			s.whole = true
			return nil
		}
		return s.accepted(c)
	case s.fields(fromAgent) != nil:
		kept, err := s.walker.end()
		if err != nil {
			return err
		}
		return s.call.end(c, kept)
	}
	return nil
}

// accepted handles coderd's answer to a relayed call.
func (s *stream) accepted(c *Connection) error {
	call, request := s.call.relayed, s.request
	if !s.whole {
		return NewError(ReasonDRPC, "dRPC: an answer comes before the request")
	}
	s.call, s.request = nil, nil
	if s.oversize {
		return nil
	}
	if request == nil { // of no bytes: the question for the interval
		request, _ = buffers.Get().(*buffer)
	}
	return c.accept(call, request)
}

// forget drops what is kept of a call.
func (c *Connection) forget(s *stream) {
	s.request.free(c.budget)
	s.call, s.request, s.walker, s.name = nil, nil, nil, nil
}
