// Package listening has listeners that say when they cannot accept connections, as when
// the process has no descriptors left.
package listening

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/outage"
	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// Reasons why no connection can be accepted, as the counter labels them.
const (
	reasonDescriptors = "descriptors" // the process, or the machine, has none left
	reasonOther       = "other"
)

// Listener counts and logs what keeps its Accept from accepting connections. Who serves
// it tries again, as gRPC and net/http do.
type Listener struct {
	net.Listener
	descriptors, other prometheus.Counter
	outage             *outage.Log
}

// New returns lis as a Listener with a name, which lines of the log and families in reg
// have as the label "listener".
func New(lis net.Listener, name string, reg prometheus.Registerer, log *slog.Logger) (*Listener, error) {
	failed := ownmetrics.CounterVec("agentstatsd_accept_errors_total",
		"Attempts of a listener to accept a connection that failed (descriptors: as the process may open no more files).",
		ownmetrics.Values("reason", reasonDescriptors, reasonOther))
	if err := ownmetrics.Register(prometheus.WrapRegistererWith(prometheus.Labels{"listener": name}, reg), failed); err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	log = log.With("listener", name, "address", lis.Addr().String())
	return &Listener{
		Listener:    lis,
		descriptors: failed.WithLabelValues(reasonDescriptors), other: failed.WithLabelValues(reasonOther),
		outage: outage.New(log, "connections cannot be accepted, trying again", "connections are accepted again"),
	}, nil
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	switch {
	case err == nil:
		l.outage.Works(context.Background())
	case errors.Is(err, net.ErrClosed):
	case errors.Is(err, syscall.EMFILE):
		l.descriptors.Inc()
		l.outage.Failed(context.Background(), err, "reason", reasonDescriptors, "open_files_limit", limitOfFiles())
	case errors.Is(err, syscall.ENFILE):
		l.descriptors.Inc()
		l.outage.Failed(context.Background(), err, "reason", reasonDescriptors)
	default:
		l.other.Inc()
		l.outage.Failed(context.Background(), err, "reason", reasonOther)
	}
	return conn, err
}

// limitOfFiles returns how many files the process may open; 0: it is not known.
func limitOfFiles() int64 {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return 0
	}
	return int64(limit.Cur)
}
