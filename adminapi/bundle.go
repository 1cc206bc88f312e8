package adminapi

import (
	"bytes"
	"context"
	"fmt"
	"runtime/pprof"
	"time"

	"github.com/prometheus/common/expfmt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/grpcserver"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// maxCPUProfile bounds the time for which one call profiles the CPU.
	maxCPUProfile = 30 * time.Second
	// bundlePart is the most of a file that one message has, in bytes.
	bundlePart = 256 << 10
)

// profiles are those of a bundle, with the debug argument of pprof and their files.
// Goroutines are text, which people read first.
var profiles = []struct {
	name  string
	debug int
	file  string
}{
	{"goroutine", 1, "goroutines.txt"}, {"heap", 0, "heap.pprof"}, {"allocs", 0, "allocs.pprof"},
	{"mutex", 0, "mutex.pprof"}, {"block", 0, "block.pprof"},
}

// CollectBundle implements agentstatsv1.AdminServiceServer.
func (s *Service) CollectBundle(req *agentstatsv1.CollectBundleRequest, stream grpc.ServerStreamingServer[agentstatsv1.CollectBundleResponse]) error {
	profiled := req.GetCpuProfile().AsDuration()
	if profiled < 0 || profiled > maxCPUProfile {
		return grpcserver.Invalid("cpu_profile", "want 0s to %v, got %v", maxCPUProfile, profiled)
	}
	if !s.bundles.TryLock() {
		return grpcserver.Exhausted(time.Second, "want one bundle of a replica at a time")
	}
	defer s.bundles.Unlock()
	send := func(name string, write func(*bytes.Buffer) error) error {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		for part := b.Next(bundlePart); len(part) > 0; part = b.Next(bundlePart) {
			if err := stream.Send(&agentstatsv1.CollectBundleResponse{Name: name, Data: part}); err != nil {
				return err
			}
		}
		return nil
	}
	if err := send("log.txt", func(b *bytes.Buffer) error { _, err := b.Write(s.LogTail()); return err }); err != nil {
		return err
	}
	if err := send("metrics.txt", s.writeMetrics); err != nil {
		return err
	}
	for _, p := range profiles {
		if err := send(p.file, func(b *bytes.Buffer) error { return pprof.Lookup(p.name).WriteTo(b, p.debug) }); err != nil {
			return err
		}
	}
	if profiled == 0 {
		return nil
	}
	return send("cpu.pprof", func(b *bytes.Buffer) error { return profileCPU(stream.Context(), b, profiled) })
}

// writeMetrics writes the metrics of the service itself, and which of them are missing: a
// bundle is for who looks for a fault.
func (s *Service) writeMetrics(b *bytes.Buffer) error {
	families, err := s.Metrics.Gather()
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(b, f); err != nil {
			return err
		}
	}
	if err != nil {
		fmt.Fprintf(b, "# some are missing: %q\n", err)
	}
	return nil
}

// profileCPU profiles the CPU for d, or until ctx ends. It fails while another profile is
// under way, as by --pprof-address.
func profileCPU(ctx context.Context, b *bytes.Buffer, d time.Duration) error {
	if err := pprof.StartCPUProfile(b); err != nil {
		return status.Errorf(codes.FailedPrecondition, "profile the CPU: %v", err)
	}
	defer pprof.StopCPUProfile()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
