package agentapi

// Flags of the command that set limits, as errors name them: whoever meets a limit can
// tell an operator which one it is.
const (
	flagMessageBytes      = "--max-message-bytes"
	flagAgentMessageBytes = "--max-agent-message-bytes"
	flagReceivingBytes    = "--max-receiving-bytes"
	flagMessageTimeout    = "--grpc-message-timeout"
	flagWatches           = "--max-watches"
	flagWatchBytes        = "--max-watch-bytes"
	flagWatchesBytes      = "--max-watches-bytes"
	flagSendTimeout       = "--grpc-send-timeout"
	flagSyncs             = "--max-syncs"
	flagSyncTimeout       = "--sync-timeout"
	flagSyncBytes         = "--max-sync-bytes"
	flagPushBytes         = "--max-push-bytes"
	flagPushesBytes       = "--max-pushes-bytes"
	flagInstances         = "--max-coderd-instances"
	flagCoderdCalls       = "--max-coderd-calls"
	flagStreamsPerAgent   = "--max-streams-per-agent"
	flagOpenCalls         = "--grpc-max-open-calls"
	flagFirstMessage      = "--grpc-first-message-timeout"
	flagAgentIdle         = "--agent-idle-timeout"
	flagAgents            = "--max-agents"
	flagRegistrationBytes = "--max-registration-bytes"
	flagDeclaredKeys      = "--metadata-max-declared-keys"
)
