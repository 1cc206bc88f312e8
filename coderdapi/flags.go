package coderdapi

// Flags of the command that set limits, as errors name them: whoever meets a limit can
// tell an operator which one it is.
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
