package agent

// SessionApp is an app that sessions are counted by: an index of SessionApps.
type SessionApp uint8

// The apps that stand for their whole family in older reports.
const (
	AppUnknown SessionApp = iota
	AppVSCode
	AppJetBrains
	AppReconnectingPTY
	AppSSH

	otherApps
)

// SessionApps are the apps that sessions are counted by. Names that are not among
// them are one: what agents say makes no series.
var SessionApps = [...]struct {
	// Name and Family are the labels app_name and family.
	Name, Family string
}{
	AppUnknown:         {"unknown", "unknown"},
	AppVSCode:          {"vscode", "vscode"},
	AppJetBrains:       {"jetbrains", "jetbrains"},
	AppReconnectingPTY: {"reconnecting_pty", "reconnecting_pty"},
	AppSSH:             {"ssh", "ssh"},

	// Editors made from VS Code.
	otherApps: {"antigravity", "vscode"},
	{"cursor", "vscode"},
	{"kiro", "vscode"},
	{"positron", "vscode"},
	{"trae", "vscode"},
	{"vscode_insiders", "vscode"},
	{"vscodium", "vscode"},
	{"windsurf", "vscode"},
}

// AppCounts are open sessions by app.
type AppCounts [len(SessionApps)]int64
