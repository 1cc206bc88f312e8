package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// metrics is where the service is scraped.
const metrics = "http://127.0.0.1:2112/metrics"

// TestInstalled installs the packages under systemd, in a machine of its own, and does with
// them what an administrator does, one after another.
func TestInstalled(t *testing.T) {
	m := newMachine(t)
	one, two := makePackage(t, m.shared, "deb", "v1.0.0", runtime.GOARCH, program), makePackage(t, m.shared, "deb", "v1.1.0", runtime.GOARCH, program)
	rpm := makePackage(t, m.shared, "rpm", "v1.0.0", runtime.GOARCH, program)
	there := func(path string) string { return "/mnt/" + filepath.Base(path) }
	for _, step := range []struct {
		name string
		do   func(m *machine)
	}{
		{"example", (*machine).checkExample},
		{"install", func(m *machine) { m.install(there(one)) }},
		{"verify", func(m *machine) {
			require.Empty(m.t, m.run("systemd-analyze", "verify", "/lib/systemd/system/agentstatsd.service", "/lib/systemd/system/agentstatsd-bridge.service"))
		}},
		{"sandbox", (*machine).checkSandbox},
		{"reload", (*machine).checkReload},
		{"bridge", (*machine).checkBridge},
		{"watchdog", (*machine).checkWatchdog},
		{"upgrade and back", func(m *machine) {
			m.upgrade("1.1.0-1", func() { m.run("dpkg", "--install", there(two)) })
			m.upgrade("1.0.0-1", func() { m.goBack(there(one)) })
		}},
		{"stop", func(m *machine) {
			m.run("systemctl", "stop", "agentstatsd-bridge", "agentstatsd")
			for _, unit := range []string{"agentstatsd", "agentstatsd-bridge"} {
				require.Equal(m.t, "success", m.property(unit, "Result"))
				require.Equal(m.t, "0", m.property(unit, "ExecMainStatus"))
			}
			m.run("systemctl", "start", "agentstatsd", "agentstatsd-bridge")
		}},
		{"remove", func(m *machine) {
			m.run("dpkg", "--remove", "agentstatsd")
			require.Equal(m.t, "inactive", m.try("systemctl", "is-active", "agentstatsd"))
			m.run("test", "-e", "/var/lib/agentstatsd/agentstatsd.db")
			m.run("test", "-e", "/etc/agentstatsd/agentstatsd.yaml")
		}},
		{"purge", func(m *machine) {
			m.run("dpkg", "--purge", "agentstatsd")
			m.checkNothingLeft()
		}},
		{"rpm", func(m *machine) { m.checkRPM(there(rpm)) }},
		{"rpmlint", func(m *machine) { m.lintRPM(there(rpm)) }},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.do(&machine{t, m.pid, m.shared}) }) {
			return
		}
	}
}

// install installs the Debian package, which starts the service.
func (m *machine) install(path string) {
	m.run("dpkg", "--install", path)
	require.Equal(m.t, "active", m.property("agentstatsd", "ActiveState"), m.journal())
	require.Equal(m.t, "enabled", m.property("agentstatsd", "UnitFileState"))
	require.Equal(m.t, "inactive", m.property("agentstatsd-bridge", "ActiveState"), "it has no configuration")
	require.Equal(m.t, "disabled", m.property("agentstatsd-bridge", "UnitFileState"))
	m.await("ready, 0 sessions", "systemctl", "show", "--property", "StatusText", "agentstatsd")
	require.Contains(m.t, m.run("systemctl", "status", "agentstatsd"), "Status: \"ready, 0 sessions\"")
	require.Contains(m.t, m.run("curl", "--silent", "--fail", metrics), "agentstatsd_build_info{")
	for path, want := range map[string]string{
		"/etc/agentstatsd":                        "750 root:agentstatsd",
		"/etc/agentstatsd/agentstatsd.yaml":       "640 root:agentstatsd",
		"/etc/agentstatsd/agentstatsd.env":        "640 root:agentstatsd",
		"/etc/agentstatsd/agentstatsd-bridge.env": "640 root:agentstatsd",
		"/var/lib/agentstatsd":                    "700 agentstatsd:agentstatsd",
		"/var/lib/agentstatsd/coderd-token":       "600 agentstatsd:agentstatsd",
		"/var/lib/agentstatsd/agentstatsd.db":     "600 agentstatsd:agentstatsd",
	} {
		require.Equal(m.t, want, m.run("stat", "--format", "%a %U:%G", path), path)
	}
	require.Contains(m.t, m.run("runuser", "-u", "agentstatsd", "--", "agentstatsd", "check", "--config", "/etc/agentstatsd/agentstatsd.yaml"), "schema version")
	require.Contains(m.t, m.run("bash", "-c", "source /usr/share/bash-completion/completions/agentstatsd && complete -p agentstatsd"), "agentstatsd")
	require.Contains(m.t, m.run("sh", "-c", "MANPAGER=cat man agentstatsd"), "COMMAND SERVE")
}

// checkExample does what examples/vm says, in a checkout with the packages of a release, and
// removes all of it. A Prometheus scrapes the result: Debian's, of its package.
func (m *machine) checkExample() {
	checkoutThere := filepath.Join(m.shared, "checkout")
	for _, name := range []string{"examples/vm/agentstatsd.yaml", "examples/vm/agentstatsd-bridge.env", "examples/vm/prometheus.yml", "deploy/prometheus/agentstatsd.rules.yml"} {
		require.NoError(m.t, os.MkdirAll(filepath.Dir(filepath.Join(checkoutThere, name)), 0o755))
		require.NoError(m.t, os.WriteFile(filepath.Join(checkoutThere, name), []byte(read(m.t, filepath.Join(checkout, name))), 0o644))
	}
	require.NoError(m.t, os.MkdirAll(filepath.Join(checkoutThere, "dist"), 0o755))
	packages, err := filepath.Glob(filepath.Join(m.shared, "agentstatsd_1.0.0-1_*.deb"))
	require.NoError(m.t, err)
	require.Len(m.t, packages, 1)
	require.NoError(m.t, os.Link(packages[0], filepath.Join(checkoutThere, "dist", filepath.Base(packages[0]))))
	require.NoError(m.t, os.WriteFile(filepath.Join(checkoutThere, "coder-api-token"), []byte("a-token-of-coder-for-its-api"), 0o600))
	for _, program := range []string{"prometheus", "promtool"} {
		require.NoError(m.t, os.WriteFile(filepath.Join(m.shared, program), []byte(read(m.t, filepath.Join(checkout, "bin/debian/usr/bin", program))), 0o755))
	}
	m.run("mkdir", "-p", "/etc/prometheus")
	scrapes := filepath.Join(checkoutThere, "examples/vm/prometheus.yml")
	soon := regexp.MustCompile(`(?m)^  scrape_(interval|timeout): \d+s$`)
	require.Len(m.t, soon.FindAllString(read(m.t, scrapes), -1), 2)
	require.NoError(m.t, os.WriteFile(scrapes, []byte(soon.ReplaceAllString(read(m.t, scrapes), "  scrape_$1: 1s")), 0o644))
	m.write("/run/systemd/system/prometheus.service", "[Service]\nExecStart=/mnt/prometheus --config.file=/etc/prometheus/prometheus.yml --storage.tsdb.path=/run/prometheus --web.listen-address=127.0.0.1:9090\nExecReload=/bin/kill -HUP $MAINPID\n")
	text := read(m.t, filepath.Join(checkout, "examples/vm/README.md"))
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(text, -1)
	require.Len(m.t, blocks, 4)
	for _, block := range blocks {
		commands := strings.NewReplacer("make packages\n", "", "_amd64.deb", "_"+runtime.GOARCH+".deb", "apt-get install", "apt-get install --yes --no-install-recommends",
			"systemctl reload prometheus", "systemctl start prometheus").Replace(block[1])
		// A process has started before it is ready.
		commands, question, asks := strings.Cut(commands, "curl ")
		m.run("bash", "-ec", "cd /mnt/checkout\n"+sudo+commands)
		if asks {
			m.await(`"ready":true`, "bash", "-c", "curl "+question)
		}
	}
	m.run("/mnt/promtool", "check", "config", "/etc/prometheus/prometheus.yml")
	for _, job := range []string{"agentstatsd", "agentstatsd-bridge"} {
		m.await(`"1"]`, "curl", "--silent", "--get", "http://127.0.0.1:9090/api/v1/query", "--data-urlencode", `query=up{job="`+job+`"}`)
	}
	require.Contains(m.t, m.run("curl", "--silent", "http://127.0.0.1:2122/metrics"), "agentstatsd_limit{what=\"agents\"} 5000\n")
	m.run("sh", "-c", "systemctl stop prometheus && rm -r /etc/prometheus")
	m.run("dpkg", "--purge", "agentstatsd")
	m.checkNothingLeft()
}

// process returns a line of a process's status.
func (m *machine) process(unit, line string) string {
	m.t.Helper()
	return strings.Join(strings.Fields(m.run("sed", "-n", "s/^"+line+":\\s*//p", "/proc/"+m.property(unit, "MainPID")+"/status")), " ")
}

// checkSandbox looks at what the process may do.
func (m *machine) checkSandbox() {
	id := m.run("id", "-u", "agentstatsd")
	require.Equal(m.t, strings.Join([]string{id, id, id, id}, " "), m.process("agentstatsd", "Uid"))
	require.Equal(m.t, "0000000000000000", m.process("agentstatsd", "CapEff"))
	require.Equal(m.t, "0000000000000000", m.process("agentstatsd", "CapBnd"))
	require.Equal(m.t, "1", m.process("agentstatsd", "NoNewPrivs"))
	require.Equal(m.t, "2", m.process("agentstatsd", "Seccomp"))
	require.Equal(m.t, "131072", m.property("agentstatsd", "LimitNOFILE"))
	// The kernel may allow less.
	limits := m.run("cat", "/proc/"+m.property("agentstatsd", "MainPID")+"/limits")
	open := regexp.MustCompile(`(?m)^Max open files +(\d+)`).FindStringSubmatch(limits)
	require.NotNil(m.t, open, limits)
	files, err := strconv.Atoi(open[1])
	require.NoError(m.t, err)
	require.Contains(m.t, m.run("curl", "--silent", metrics), fmt.Sprintf("agentstatsd_limit{what=\"grpc_connections\"} %d\n", files*3/4), "it reads the limit in spite of the sandbox")
	// As many connections wait as the kernel allows, not Go's 128, which it takes if it cannot read this.
	const backlog = "/proc/sys/net/core/somaxconn"
	require.Equal(m.t, m.run("cat", backlog), m.run("nsenter", "--target", m.property("agentstatsd", "MainPID"), "--mount", "--root", "cat", backlog))
	require.Contains(m.t, m.run("curl", "--silent", metrics), "\nprocess_start_time_seconds ", "it reads when the machine was started")
}

// checkReload reloads a file that can be used and one that cannot.
func (m *machine) checkReload() {
	file := "/etc/agentstatsd/agentstatsd.yaml"
	m.run("sed", "-i", "s/^  #max_agents: .*/  max_agents: 1234/", file)
	m.run("systemctl", "reload", "agentstatsd")
	m.await("agentstatsd_limit{what=\"agents\"} 1234\n", "curl", "--silent", metrics)
	m.run("sed", "-i", "s/max_agents: 1234/max_agents: many/", file)
	m.fail("systemctl", "reload", "agentstatsd")
	require.Equal(m.t, "active", m.property("agentstatsd", "ActiveState"))
	require.Contains(m.t, m.journal(), "agents.max_agents: want a whole number")
	// What the first command of the reload does not see is in the status line.
	m.run("sed", "-i", "s/max_agents: many/max_agents: 2345/", file)
	m.run("mv", "/var/lib/agentstatsd/coderd-token", "/var/lib/agentstatsd/away")
	m.run("systemctl", "reload", "agentstatsd")
	m.await("the configuration was not reloaded", "systemctl", "show", "--property", "StatusText", "agentstatsd")
	m.run("mv", "/var/lib/agentstatsd/away", "/var/lib/agentstatsd/coderd-token")
	m.run("systemctl", "reload", "agentstatsd")
	m.await("ready", "sh", "-c", "systemctl show --property StatusText agentstatsd | grep -x 'StatusText=ready, 0 sessions'")
}

// checkBridge starts the bridge beside the service. It has a user of its own, both tokens,
// and sees nothing else of the service's.
func (m *machine) checkBridge() {
	m.fail("systemctl", "start", "agentstatsd-bridge")
	require.Contains(m.t, m.journal(), "--upstream: want the URL of coderd")
	m.run("systemctl", "stop", "agentstatsd-bridge")
	m.write("/etc/agentstatsd/agentstatsd-bridge.env", "AGENTSTATSD_BRIDGE_UPSTREAM=http://127.0.0.1:3000\nAGENTSTATSD_BRIDGE_DRAIN_DELAY=0s\n"+
		"AGENTSTATSD_BRIDGE_CODER_URL=http://127.0.0.1:3000\nAGENTSTATSD_BRIDGE_CODER_API_TOKEN_FILE=/run/credentials/agentstatsd-bridge.service/coder-api-token\n")
	m.run("sh", "-c", "umask 077; echo a-token-of-coder-for-its-api >/etc/agentstatsd/coder-api-token")
	m.run("systemctl", "enable", "--now", "agentstatsd-bridge")
	m.await("connections of agents", "systemctl", "show", "--property", "StatusText", "agentstatsd-bridge")
	m.await(`"ready":true`, "curl", "--silent", "http://127.0.0.1:2115/-/ready")
	pid := m.property("agentstatsd-bridge", "MainPID")
	require.NotEqual(m.t, m.process("agentstatsd", "Uid"), m.process("agentstatsd-bridge", "Uid"))
	inside := func(command string) string {
		return fmt.Sprintf("nsenter --target %s --mount --root -- setpriv --reuid $(stat -c %%u /proc/%s) --regid $(stat -c %%g /proc/%s) --groups $(getent group agentstatsd | cut -d: -f3) -- %s", pid, pid, pid, command)
	}
	credentials := "/run/credentials/agentstatsd-bridge.service/"
	require.Equal(m.t, m.run("cat", "/var/lib/agentstatsd/coderd-token"), m.run("sh", "-c", inside("cat "+credentials+"coderd-token")))
	require.Equal(m.t, "a-token-of-coder-for-its-api", m.run("sh", "-c", inside("cat "+credentials+"coder-api-token")))
	m.run("sh", "-c", inside("cat /etc/agentstatsd/agentstatsd-bridge.yaml"))
	for _, path := range []string{
		"/var/lib/agentstatsd/coderd-token", "/var/lib/agentstatsd/agentstatsd.db", "/etc/agentstatsd/coder-api-token", "/etc/agentstatsd/agentstatsd.yaml", "/etc/agentstatsd/agentstatsd.env",
	} {
		require.Contains(m.t, m.fail("sh", "-c", inside("cat "+path)), "Permission denied", path)
	}
	require.Contains(m.t, m.fail("sh", "-c", inside("touch /etc/agentstatsd/x")), "Read-only file system")
	m.run("systemctl", "reload", "agentstatsd-bridge")
	m.await("ready", "systemctl", "show", "--property", "StatusText", "agentstatsd-bridge")
}

// checkWatchdog has the process stand still: systemd ends it and starts another one.
func (m *machine) checkWatchdog() {
	m.write("/run/systemd/system/agentstatsd.service.d/watchdog.conf", "[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\nRestartSec=0\n")
	m.run("systemctl", "daemon-reload")
	m.run("systemctl", "restart", "agentstatsd")
	pid := m.property("agentstatsd", "MainPID")
	m.run("kill", "-STOP", pid)
	m.await("NRestarts=1", "systemctl", "show", "--property", "NRestarts", "agentstatsd")
	m.await("active", "systemctl", "is-active", "agentstatsd")
	require.NotEqual(m.t, pid, m.property("agentstatsd", "MainPID"))
	journal := m.try("journalctl", "--no-pager", "--unit", "agentstatsd")
	require.Contains(m.t, journal, "Failed with result 'watchdog'")
	require.Contains(m.t, journal, "goroutine ", "what hangs is in the log")
	m.run("rm", "-r", "/run/systemd/system/agentstatsd.service.d")
	m.run("systemctl", "daemon-reload")
}

// upgrade installs another version, which restarts what runs. What was changed of the
// configuration, and the database, stay.
func (m *machine) upgrade(version string, install func()) {
	service, bridge := m.property("agentstatsd", "MainPID"), m.property("agentstatsd-bridge", "MainPID")
	install()
	require.Equal(m.t, version, m.run("dpkg-query", "--show", "--showformat", "${Version}", "agentstatsd"))
	for unit, before := range map[string]string{"agentstatsd": service, "agentstatsd-bridge": bridge} {
		require.Equal(m.t, "active", m.property(unit, "ActiveState"), m.journal())
		require.NotEqual(m.t, before, m.property(unit, "MainPID"))
	}
	m.await("agentstatsd_limit{what=\"agents\"} 2345\n", "curl", "--silent", metrics)
	require.Equal(m.t, "640 root:agentstatsd", m.run("stat", "--format", "%a %U:%G", "/etc/agentstatsd/agentstatsd.yaml"))
}

// sudo is what documents begin commands with, for a shell of root.
const sudo = `sudo() { if [ "$1" = -u ]; then runuser -u "$2" -- "${@:3}"; else env DEBIAN_FRONTEND=noninteractive "$@"; fi; }
`

// goBack does what docs/operations.md says, to a package of an older version.
func (m *machine) goBack(path string) {
	text := read(m.t, filepath.Join(checkout, "docs/operations.md"))
	found := regexp.MustCompile("(?s)```sh\n(sudo systemctl stop agentstatsd\n.*?)```").FindStringSubmatch(text)
	require.NotNil(m.t, found)
	older := regexp.MustCompile(`\./agentstatsd_\S+\.deb`)
	require.Regexp(m.t, older, found[1])
	m.run("bash", "-ec", sudo+strings.Replace(older.ReplaceAllString(found[1], path), "apt-get install", "apt-get install --yes --no-install-recommends", 1))
	require.Contains(m.t, m.journal(), "from_version=29", "the older program has made its schema of the one that it found")
}

// checkNothingLeft looks for files with our name. The user stays.
func (m *machine) checkNothingLeft() {
	require.Empty(m.t, m.run("find", "/etc", "/usr", "/var", "/lib", "/run", "-xdev", "-name", "*agentstatsd*", "-not", "-path", "/run/log/*", "-not", "-path", "/var/lib/dpkg/info/*",
		"-not", "-path", "/var/log/*", "-not", "-path", "/var/cache/man/*"))
	require.Contains(m.t, m.run("getent", "passwd", "agentstatsd"), "/usr/sbin/nologin")
}

// checkRPM installs the RPM package, whose dependencies Debian's packages are.
func (m *machine) checkRPM(path string) {
	m.run("rpm", "--install", "--nodeps", path)
	require.Empty(m.t, m.run("rpm", "--verify", "--nodeps", "agentstatsd"))
	require.Equal(m.t, "640 root:agentstatsd", m.run("stat", "--format", "%a %U:%G", "/etc/agentstatsd/agentstatsd.yaml"))
	m.run("systemctl", "start", "agentstatsd")
	m.await("ready, 0 sessions", "systemctl", "show", "--property", "StatusText", "agentstatsd")
	before := m.property("agentstatsd", "MainPID")
	m.run("rpm", "--upgrade", "--nodeps", "--replacepkgs", path)
	m.await("active", "systemctl", "is-active", "agentstatsd")
	require.NotEqual(m.t, before, m.property("agentstatsd", "MainPID"), "it is restarted")
	m.run("rpm", "--erase", "agentstatsd")
	require.Equal(m.t, "inactive", m.try("systemctl", "is-active", "agentstatsd"))
	m.run("test", "-e", "/var/lib/agentstatsd/agentstatsd.db")
	m.fail("test", "-e", "/usr/bin/agentstatsd")
}

// accepted are what rpmlint says of the package, and why that stays.
var accepted = map[string]string{
	"non-standard-gid":           "the package makes the group, before its files",
	"non-standard-dir-perm":      "the configuration may have passwords",
	"non-readable":               "the configuration may have passwords",
	"no-signature":               "who publishes it signs it",
	"no-binary":                  "of a program that is static",
	"only-non-binary-in-usr-lib": "units, users",
	"no-manual-page-for-binary":  "there is one, gzipped as on Debian",
	"manpage-not-compressed":     "by gzip, where it wants bz2",
	"invalid-license":            "SPDX's name",
	"summary-not-capitalized":    "as Debian has it",
}

// lintRPM has rpmlint look at a package. As root it unpacks that where its files belong, so
// it runs in the machine.
func (m *machine) lintRPM(path string) {
	out := m.try("rpmlint", path)
	require.Contains(m.t, out, "1 packages and 0 specfiles checked")
	said := make(map[string]bool)
	for _, line := range regexp.MustCompile(`(?m)^agentstatsd\.\S+: [EW]: (\S+).*$`).FindAllStringSubmatch(out, -1) {
		said[line[1]] = true
		require.Contains(m.t, accepted, line[1], line[0])
	}
	for tag := range accepted {
		require.True(m.t, said[tag], "rpmlint does not say %s any more", tag)
	}
}

// Each unit runs its own command with its own files.
func TestUnitsAreWhole(t *testing.T) {
	for unit, want := range map[string]string{"agentstatsd": "serve", "agentstatsd-bridge": "bridge"} {
		text, err := os.ReadFile("systemd/" + unit + ".service")
		require.NoError(t, err)
		require.Contains(t, string(text), "\nExecStart=/usr/bin/agentstatsd "+want+" --config /etc/agentstatsd/"+unit+".yaml\n")
		require.Contains(t, string(text), "\nEnvironmentFile=-/etc/agentstatsd/"+unit+".env\n")
	}
}
