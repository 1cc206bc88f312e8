package grpcserver

// Flags of the command that set limits, as errors name them: who meets a limit can name
// it to an operator.
const (
	flagReceivingBytes  = "--max-receiving-bytes"
	flagMessageTimeout  = "--grpc-message-timeout"
	flagSendTimeout     = "--grpc-send-timeout"
	flagCoderdCalls     = "--max-coderd-calls"
	flagStreamsPerAgent = "--max-streams-per-agent"
	flagOpenCalls       = "--grpc-max-open-calls"
	flagAgentIdle       = "--agent-idle-timeout"
)

// Those that errors of services name, too.
const (
	FlagMessageBytes      = "--max-message-bytes"
	FlagAgentMessageBytes = "--max-agent-message-bytes"
	FlagWatches           = "--max-watches"
	FlagFirstMessage      = "--grpc-first-message-timeout"
)
