package main

import (
	"context"

	"github.com/coder/serpent"

	"github.com/coder/agentstatsd/internal/librarylog"
	"github.com/coder/agentstatsd/optiontable"
)

func serveCommand() *serpent.Command {
	var c config
	return &serpent.Command{
		Use:        "serve",
		Short:      "Run the service.",
		Options:    c.withPrint(c.options()),
		Middleware: serpent.Chain(optiontable.NoArguments, configured(&c, c.validate, freshService)),
		Handler: func(inv *serpent.Invocation) error {
			log, err := newLogger(inv.Stderr, &c)
			if err != nil {
				return err
			}
			librarylog.GRPC(log)
			s, err := newService(inv.Context(), &c, log)
			if err != nil {
				return unlessStopped(inv.Context(), err)
			}
			return s.run(inv.Context())
		},
	}
}

// freshService returns the configuration of a service, not read yet.
func freshService() *candidate {
	c := new(config)
	return &candidate{config: c, options: c.options(), validate: c.validate}
}

// unlessStopped returns err, or nil if the program was stopped before it
// had started: then err says only that.
func unlessStopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
