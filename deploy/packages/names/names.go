// Package names has the versions and the file names of the Debian and RPM packages.
package names

import "strings"

// Revision is that of the packaging of a version.
const Revision = "1"

// Version returns a version such as v1.2.3 as both formats order it. What Go puts behind the
// first hyphen is older than the version without it, which they write with a tilde.
func Version(version string) string {
	base, metadata, _ := strings.Cut(strings.TrimPrefix(version, "v"), "+")
	release, pre, isPre := strings.Cut(base, "-")
	if isPre {
		release += "~" + strings.ReplaceAll(pre, "-", ".")
	}
	if metadata != "" {
		release += "+" + metadata
	}
	return release
}

// ofRPM are the architectures that RPM calls otherwise than Go does.
var ofRPM = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}

// Deb returns the file name of the Debian package of a version for an architecture of Go's.
func Deb(version, arch string) string {
	return "agentstatsd_" + Version(version) + "-" + Revision + "_" + arch + ".deb"
}

// RPM returns that of the RPM package.
func RPM(version, arch string) string {
	if name, ok := ofRPM[arch]; ok {
		arch = name
	}
	return "agentstatsd-" + Version(version) + "-" + Revision + "." + arch + ".rpm"
}
