// Package process runs what is compared as processes of their own and reads
// what they use: processor time, memory.
package process

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CPU returns the processor time that a process has used, of all its threads,
// those that have ended too. It is precise to the nanosecond, where
// /proc/<pid>/stat counts in hundredths of a second.
func CPU(pid int) (time.Duration, error) {
	// See clock_getcpuclockid(3): the complement of the id, then the clock of the
	// scheduler.
	const cpuclockSched = 2
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|cpuclockSched), &t); err != nil {
		return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// RSS returns the bytes of a process that are resident.
func RSS(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, fmt.Errorf("resident memory: %w", err)
	}
	return kilobytes(text, "Rss")
}

// PeakRSS returns the most bytes of a process that ever were resident.
func PeakRSS(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("peak of resident memory: %w", err)
	}
	return kilobytes(text, "VmHWM")
}

// BytesRead returns the bytes that a process has read, of sockets and files.
func BytesRead(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return 0, fmt.Errorf("bytes read: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "rchar:"); ok {
			return strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		}
	}
	return 0, errors.New("bytes read: rchar not found")
}

// kilobytes finds a line "name:   123 kB" and returns it in bytes.
func kilobytes(text []byte, name string) (int64, error) {
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		value, ok := strings.CutPrefix(lines.Text(), name+":")
		if !ok {
			continue
		}
		number, ok := strings.CutSuffix(strings.TrimSpace(value), " kB")
		if !ok {
			return 0, fmt.Errorf("%s: want kB, got %q", name, value)
		}
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		return n << 10, nil
	}
	return 0, fmt.Errorf("%s: not found", name)
}
