package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/coder/serpent"

	"github.com/coder/agentstatsd/optiontable"
)

// candidate is a configuration that can be read.
type candidate struct {
	config  *config
	bridge  *bridgeConfig // nil: of a service alone
	options serpent.OptionSet
	// validate checks what concerns more than one option.
	validate func() error
}

// Options implements reload.Configuration.
func (c *candidate) Options() serpent.OptionSet { return c.config.sources.options }

// Validate implements reload.Configuration.
func (c *candidate) Validate() error { return c.validate() }

// sources are what a configuration was read from.
type sources struct {
	options serpent.OptionSet // with where each value came from
	given   optiontable.Given // by flags and environment
	// candidate returns the same command's configuration, not read yet. nil: it cannot be
	// read again.
	candidate func() *candidate
}

// configured completes and validates c before the command runs. It
// applies the YAML file to the options that neither flags nor environment gave. It refuses
// variables that look like options and are none. It touches nothing on disk but that file.
// fresh returns the same command's configuration for a reload; nil: there is none.
func configured(c *config, validate func() error, fresh func() *candidate) serpent.MiddlewareFunc {
	return func(next serpent.HandlerFunc) serpent.HandlerFunc {
		return func(inv *serpent.Invocation) error {
			if err := unknownVariables(inv); err != nil {
				return err
			}
			if err := optiontable.FlagsOverEnvironment(inv); err != nil {
				return err
			}
			c.sources = sources{options: inv.Command.Options, given: optiontable.GivenIn(inv.Command.Options), candidate: fresh}
			if fresh != nil {
				c.sources.options = optiontable.InOrder(inv.Command.Options, fresh().options)
			}
			if err := readConfigFile(c.configFile, c.sources.options); err != nil {
				return err
			}
			if err := validate(); err != nil {
				return err
			}
			if c.printConfig {
				return optiontable.Print(inv.Stdout, c.sources.options)
			}
			return next(inv)
		}
	}
}

// withPrint returns options with --print-config, which is no part of a configuration.
func (c *config) withPrint(options serpent.OptionSet) serpent.OptionSet {
	return append(options, serpent.Option{
		Description: "Print every option in force, with its source and without secrets, as a configuration file; start nothing.",
		Flag:        "print-config", Default: "false", Value: serpent.BoolOf(&c.printConfig),
	})
}

func readConfigFile(path string, options serpent.OptionSet) error {
	if path == "" {
		return nil
	}
	if err := optiontable.ApplyFile(path, options); err != nil {
		return fmt.Errorf("--config %s: %w", path, err)
	}
	return nil
}

// reread returns the configuration as a start would read it now.
func (s *sources) reread() (*candidate, error) {
	if s.candidate == nil {
		return nil, errors.New("this command does not read its configuration again")
	}
	n := s.candidate()
	if err := s.given.Apply(n.options); err != nil {
		return nil, err
	}
	if err := readConfigFile(n.config.configFile, n.options); err != nil {
		return nil, err
	}
	n.config.sources = sources{options: n.options, given: s.given, candidate: s.candidate}
	return n, n.validate()
}

// ourVariables is the prefix of the variables that are ours alone.
const ourVariables = "AGENTSTATSD_"

// serviceLink matches the variables that Kubernetes gives each pod for a Service
// whose name begins with agentstatsd: they are no options.
var serviceLink = regexp.MustCompile(`^AGENTSTATSD(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// unknownVariables returns an error that names the variables with our prefix that
// no option of any command has: a misspelt one would be ignored else.
func unknownVariables(inv *serpent.Invocation) error {
	commands := []*serpent.Command{inv.Command}
	if parent := inv.Command.Parent; parent != nil {
		commands = parent.Children
	}
	known := make(map[string]bool)
	for _, command := range commands {
		for _, o := range command.Options {
			known[o.Env] = true
		}
	}
	var errs []error
	for _, v := range inv.Environ {
		if known[v.Name] || !strings.HasPrefix(v.Name, ourVariables) || serviceLink.MatchString(v.Name) {
			continue
		}
		errs = append(errs, fmt.Errorf("%s is in the environment and no option has that variable: see --help", v.Name))
	}
	return errors.Join(errs...)
}
