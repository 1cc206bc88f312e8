package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/secrets"
)

// Tokens, as errors and the log name them.
const (
	tokenOfCoderd   = "coderd's token"
	tokenToPush     = "the token to push"
	tokenOfOperator = "the operator's token"
)

// tokenFile is a file of tokens that are no agent's.
type tokenFile struct {
	flag, what, path string
	// own: the service itself makes it where nobody else may have put one.
	own bool
	// shared: replicas have it together, so none makes it.
	shared bool
}

// readTokens returns the tokens of all files. A file that is not there is made, with a
// random token, unless make is false.
func (c *config) readTokens(create bool, log *slog.Logger) (t grpcserver.Tokens, err error) {
	shared := c.databaseURL != ""
	for _, f := range []struct {
		tokenFile
		into *[]grpcserver.Token
	}{
		{tokenFile{"coderd-token-file", tokenOfCoderd, c.tokenFile(), c.coderdTokenFile == "", shared}, &t.Coderd},
		{tokenFile{"push-token-file", tokenToPush, c.pushTokenFile, false, shared}, &t.Push},
		{tokenFile{"operator-token-file", tokenOfOperator, c.operatorTokenFile, false, shared}, &t.Operator},
	} {
		if f.path == "" {
			continue
		}
		if *f.into, err = f.read(create, log); err != nil {
			if !f.own {
				err = fmt.Errorf("--%s: %w", f.flag, err)
			}
			return grpcserver.Tokens{}, err
		}
	}
	return t, t.Validate()
}

// read returns the tokens in the file, which is made if it is not there and create is true.
func (f *tokenFile) read(create bool, log *slog.Logger) ([]grpcserver.Token, error) {
	if f.own {
		if err := secrets.CheckOwn(f.path); err != nil {
			return nil, fmt.Errorf("read %s: %w", f.what, err)
		}
	}
	read, err := secrets.LoadTokens(f.what, f.path, log)
	if errors.Is(err, fs.ErrNotExist) && create {
		if f.shared {
			return nil, fmt.Errorf("%w: with --database-url replicas have one token together, so none makes it. "+
				"Make it once (openssl rand -hex 32) and give the file to each by --%s", err, f.flag)
		}
		switch err := secrets.MakeToken(f.path); {
		case err == nil:
			log.Info("made "+f.what, "file", f.path)
		case !errors.Is(err, fs.ErrExist): // else another process was first
			return nil, fmt.Errorf("make %s: %w", f.what, err)
		}
		read, err = secrets.LoadTokens(f.what, f.path, log)
	}
	tokens := make([]grpcserver.Token, len(read))
	for i, t := range read {
		tokens[i] = grpcserver.NewToken(t.Name, t.Token)
	}
	return tokens, err
}

// readToken returns the first token in the file at path.
func readToken(what, path string, log *slog.Logger) (string, error) {
	tokens, err := secrets.LoadTokens(what, path, log)
	if err != nil {
		return "", err
	}
	return tokens[0].Token, nil
}
