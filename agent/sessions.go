package agent

import (
	"slices"
	"strings"
	"unicode"
)

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

	// Those that Coder counts with VS Code, then those that connect by SSH. Agents do
	// not report sftp yet.
	otherApps: {"antigravity", "vscode"},
	{"code_server", "vscode"},
	{"codium", "vscode"},
	{"cursor", "vscode"},
	{"devin", "vscode"},
	{"kiro", "vscode"},
	{"positron", "vscode"},
	{"trae", "vscode"},
	{"vscode_insiders", "vscode"},
	{"vscode_web", "vscode"},
	{"vscodium", "vscode"},
	{"windsurf", "vscode"},
	{"sftp", "sftp"},
	{"zed", "ssh"},
}

// AppCounts are open sessions by app.
type AppCounts [len(SessionApps)]int64

// MaxSessionNames of one report are looked at, the known ones first.
const MaxSessionNames = 64

// AppSessions are the open sessions of one app by the name that an agent gives it, or
// the connections by one protocol.
type AppSessions struct {
	Name  string
	Count int64
	known bool // only while it is chosen
}

// sessionApps are the apps by their names in reports.
var sessionApps = func() map[string]SessionApp {
	apps := make(map[string]SessionApp, len(SessionApps))
	for app, names := range SessionApps {
		apps[names.Name] = SessionApp(app)
	}
	return apps
}()

// CountSessions returns the open sessions by family and by app. If any of the
// apps, whose names differ, has sessions, they count, else what the four older
// fields say. Names that are not known are in none of the four families.
func CountSessions(apps []AppSessions, older Sessions) (Sessions, AppCounts) {
	var counts AppCounts
	positive := false
	for i := range apps {
		if n := apps[i].Count; n > 0 {
			positive = true
			app := &counts[sessionApps[normalName(apps[i].Name)]]
			*app = SaturatingAdd(*app, n)
		}
	}
	if !positive {
		counts[AppVSCode], counts[AppJetBrains] = older.VSCode, older.JetBrains
		counts[AppReconnectingPTY], counts[AppSSH] = older.ReconnectingPTY, older.SSH
		return older, counts
	}
	var s Sessions
	for app, n := range counts {
		switch SessionApps[app].Family {
		case "vscode":
			s.VSCode = SaturatingAdd(s.VSCode, n)
		case "jetbrains":
			s.JetBrains = SaturatingAdd(s.JetBrains, n)
		case "reconnecting_pty":
			s.ReconnectingPTY = SaturatingAdd(s.ReconnectingPTY, n)
		case "ssh":
			s.SSH = SaturatingAdd(s.SSH, n)
		}
	}
	return s, counts
}

// AppsOf returns the sessions of a report by app. Those of the names beyond FirstApps
// count together as one app that is not known. overflow is the number of these names.
func AppsOf(counts map[string]int64) (apps []AppSessions, overflow int) {
	apps = FirstApps(counts)
	overflow = len(counts) - len(apps)
	if overflow == 0 {
		return apps, 0
	}
	var rest int64
	for _, n := range counts {
		rest = SaturatingAdd(rest, max(0, n))
	}
	for i := range apps {
		rest = max(0, rest-max(0, apps[i].Count))
	}
	return append(apps, AppSessions{Count: rest}), overflow
}

// FirstApps returns MaxSessionNames of the names with their counts, the same ones each
// time: the known ones first, then in their order. Fewer are returned as they come.
func FirstApps(counts map[string]int64) []AppSessions {
	if len(counts) == 0 {
		return nil
	}
	apps := make([]AppSessions, 0, min(len(counts), 2*MaxSessionNames))
	if len(counts) <= MaxSessionNames {
		for name, n := range counts {
			apps = append(apps, AppSessions{Name: name, Count: n})
		}
		return apps
	}
	// A report can have tens of thousands of names. So only twice as many as are needed
	// are kept and sorted at once. None is normalized twice.
	for name, n := range counts {
		apps = append(apps, AppSessions{name, n, isKnown(name)})
		if len(apps) == cap(apps) {
			apps = firstApps(apps)
		}
	}
	return firstApps(apps)
}

// firstApps returns the first MaxSessionNames.
func firstApps(apps []AppSessions) []AppSessions {
	slices.SortFunc(apps, func(a, b AppSessions) int {
		if a.known != b.known {
			if a.known {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	return apps[:min(len(apps), MaxSessionNames)]
}

func isKnown(name string) bool { return sessionApps[normalName(name)] != AppUnknown }

// maxAppName is the length at which Coder cuts the name of an app, in characters.
const maxAppName = 64

// normalName returns the name as Coder compares it: without control characters and space
// around it, cut, in lower case with underscores.
func normalName(name string) string {
	if strings.ContainsFunc(name, unicode.IsControl) {
		name = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return -1
			}
			return r
		}, name)
	}
	name = strings.TrimSpace(name)
	if len(name) > maxAppName {
		characters := 0
		for i := range name {
			if characters == maxAppName {
				name = strings.TrimSpace(name[:i])
				break
			}
			characters++
		}
	}
	return strings.ReplaceAll(strings.ToLower(name), "-", "_")
}
