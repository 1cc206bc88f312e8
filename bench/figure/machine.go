package figure

import (
	"bufio"
	"bytes"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
)

// Machine is what the figures were seen on.
type Machine struct {
	CPU         string `json:"cpu"`
	Cores       int    `json:"cores"`
	MemoryBytes int64  `json:"memory_bytes"`
	Kernel      string `json:"kernel"`
	Go          string `json:"go"`
	Platform    string `json:"platform"`
}

// ThisMachine describes this machine; what cannot be read is "unknown" or 0.
func ThisMachine() Machine {
	m := Machine{
		CPU:      "unknown",
		Cores:    runtime.NumCPU(),
		Kernel:   "unknown",
		Go:       runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if name := field(text, "model name"); name != "" {
			m.CPU = name
		}
	}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		kilobytes, _, _ := strings.Cut(field(text, "MemTotal"), " ")
		if n, err := strconv.ParseInt(kilobytes, 10, 64); err == nil {
			m.MemoryBytes = n << 10
		}
	}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(text))
	}
	return m
}

// field returns the value of the first "name: value" line of a file of /proc;
// empty: there is none.
func field(text []byte, name string) string {
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		key, value, ok := strings.Cut(lines.Text(), ":")
		if ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// Modules returns those of the named modules that this program is built from, in
// their order.
func Modules(paths ...string) []Module {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return nil
	}
	return ModulesOf(info, paths)
}

// ModulesOf returns those of the named modules that a program is built from, its
// own included.
func ModulesOf(info *debug.BuildInfo, paths []string) []Module {
	all := append([]*debug.Module{&info.Main}, info.Deps...)
	var modules []Module
	for _, path := range paths {
		i := slices.IndexFunc(all, func(m *debug.Module) bool { return m.Path == path })
		if i >= 0 {
			modules = append(modules, Module{Path: path, Version: all[i].Version})
		}
	}
	return modules
}
