package coderdapi

// Flags of the command that set limits, as errors name them: who meets a limit can name
// it to an operator.
const (
	flagWatchBytes        = "--max-watch-bytes"
	flagWatchesBytes      = "--max-watches-bytes"
	flagSyncs             = "--max-syncs"
	flagSyncTimeout       = "--sync-timeout"
	flagSyncBytes         = "--max-sync-bytes"
	flagPushBytes         = "--max-push-bytes"
	flagPushesBytes       = "--max-pushes-bytes"
	flagInstances         = "--max-coderd-instances"
	flagAgents            = "--max-agents"
	flagRegistrationBytes = "--max-registration-bytes"
	flagDeclaredKeys      = "--metadata-max-declared-keys"
)
