// Package operator has the commands of those who run the service: they ask its replicas
// by AdminService and print what these answer.
//
// Each command dials all addresses that it is given, asks all replicas at once, and makes
// one answer of theirs. Its table is for people; with --json it prints one JSON document,
// whose fields stay what they are.
package operator

import (
	"errors"
	"fmt"

	"github.com/coder/serpent"
)

// Exit codes of the commands.
const (
	// exitFault: the command was refused, or has found a fault.
	exitFault = 1
	// exitNotAsked: no replica could be asked.
	exitNotAsked = 2
	// exitPartial: a part of the replicas has answered, and that was printed.
	exitPartial = 3
)

// codedError ends the program with an exit code.
type codedError struct {
	code int
	error
}

// Unwrap returns the error without the code.
func (e codedError) Unwrap() error { return e.error }

// coded returns an error that ends the program with the code.
func coded(code int, format string, args ...any) error {
	return codedError{code, fmt.Errorf(format, args...)}
}

// ExitCode returns the code that the program ends with after err: 0 without one, and 1
// for those of other packages.
func ExitCode(err error) int {
	var c codedError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &c):
		return c.code
	}
	return exitFault
}

// Commands returns the commands, in the order of the help.
func Commands() []*serpent.Command {
	return []*serpent.Command{
		statusCommand(), agentsCommand(), agentCommand(), topCommand(), watchCommand(), metadataCommand(), refusalsCommand(), cardinalityCommand(), configCommand(),
		deregisterCommand(), drainCommand(), doctorCommand(), bundleCommand(),
	}
}

// exitCodes is the end of each command's description.
const exitCodes = "\n\nExit codes: 0 all replicas have answered, 1 the request is refused or a fault is found, " +
	"2 no replica could be asked, 3 a part of them has answered."
