package main

import (
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/coder/serpent"

	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/optiontable"
)

// alike are the flags of options that replicas should have alike, beside those of the
// groups Agents, Pushes and Metadata.
var alike = []string{
	"lease-duration", "deployment-id", "stats-retention", "max-report-subscriptions", "max-report-sums", "max-report-sum-bytes",
	"max-message-bytes", "prometheus-collect-agent-stats", "prometheus-aggregate-agent-stats-by", "prometheus-extra-labels",
}

// alikeWith returns what replicas should have alike, as this one has it with these tokens:
// options that are not at their default, and fingerprints of the tokens of each role.
func (c *config) alikeWith(tokens grpcserver.Tokens) (map[string]string, error) {
	values, err := optiontable.NotDefault(c.sources.options, new(config).options(), func(o *serpent.Option) bool {
		return slices.Contains([]*serpent.Group{&groupAgents, &groupPushes, &groupMetadata}, o.Group) || slices.Contains(alike, o.Flag)
	})
	if err != nil {
		return nil, err
	}
	for what, of := range map[string][]grpcserver.Token{"coderd's tokens": tokens.Coderd, "tokens to push": tokens.Push, "operators' tokens": tokens.Operator} {
		if len(of) == 0 {
			continue
		}
		hashes := make([][]byte, len(of))
		for i, token := range of {
			hashes[i] = token.Hash[:]
		}
		slices.SortFunc(hashes, slices.Compare)
		sum := sha256.New()
		for _, hash := range hashes {
			sum.Write(hash)
		}
		values[what] = fmt.Sprintf("%x", sum.Sum(nil)[:4])
	}
	return values, nil
}

// shareConfig has the other replicas compare the configuration with theirs.
func (s *service) shareConfig(c *config, tokens grpcserver.Tokens) error {
	if s.replicas == nil {
		return nil
	}
	values, err := c.alikeWith(tokens)
	if err != nil {
		return err
	}
	return s.replicas.SetConfig(values)
}
