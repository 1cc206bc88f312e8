package main

import (
	"context"

	"github.com/coder/serpent"
)

func serveCommand() *serpent.Command {
	var c config
	return &serpent.Command{
		Use:        "serve",
		Short:      "Run the service.",
		Options:    c.options(),
		Middleware: serpent.Chain(noArguments, c.configured),
		Handler: func(inv *serpent.Invocation) error {
			log, err := newLogger(inv.Stderr, &c)
			if err != nil {
				return err
			}
			logLibraries(log)
			s, err := newService(inv.Context(), &c, log)
			if err != nil {
				return unlessStopped(inv.Context(), err)
			}
			return s.run(inv.Context())
		},
	}
}

// unlessStopped returns err, or nil if the program was stopped before it
// had started: then err says only that.
func unlessStopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
