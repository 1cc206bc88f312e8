package main

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/coder/agentstatsd/secrets"
)

// Tokens, as errors and the log name them.
const (
	tokenOfCoderd = "coderd's token"
	tokenToPush   = "the token to push"
)

// loadTokenHashes returns the SHA-256 of coderd's token, and that of the token of those
// who may only push; zero: there is none.
func loadTokenHashes(c *config, log *slog.Logger) (ofCoderd, toPush [sha256.Size]byte, err error) {
	if ofCoderd, err = loadTokenHash(tokenOfCoderd, c.tokenFile(), c.coderdTokenFile == "", log); err != nil || c.pushTokenFile == "" {
		return ofCoderd, toPush, err
	}
	if toPush, err = loadTokenHash(tokenToPush, c.pushTokenFile, false, log); err != nil {
		return ofCoderd, toPush, fmt.Errorf("--push-token-file: %w", err)
	}
	if toPush == ofCoderd {
		err = fmt.Errorf("--push-token-file: %s has coderd's token, want another one", c.pushTokenFile)
	}
	return ofCoderd, toPush, err
}

// readToken returns the token in the file at path. A file that others can read
// is used, with a warning: mounted secrets often cannot be 0600.
func readToken(what, path string, log *slog.Logger) (string, error) {
	token, info, err := secrets.ReadToken(path)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", what, err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		log.Warn("others can read "+what, "file", path, "mode", mode.String())
	}
	return token, nil
}

// loadTokenHash returns the SHA-256 of a token in the file at path. It
// makes the file with a random token, mode 0600, if there is none. If own, the file
// is one that only the service itself makes: one that somebody else may have put
// there is refused.
func loadTokenHash(what, path string, own bool, log *slog.Logger) ([sha256.Size]byte, error) {
	if own {
		if err := secrets.CheckOwn(path); err != nil {
			return [sha256.Size]byte{}, fmt.Errorf("read %s: %w", what, err)
		}
	}
	token, err := readToken(what, path, log)
	if errors.Is(err, fs.ErrNotExist) {
		token, err = writeToken(what, path)
		switch {
		case err == nil:
			log.Info("made "+what, "file", path)
		case errors.Is(err, fs.ErrExist): // another process was first
			return loadTokenHash(what, path, own, log)
		}
	}
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	return sha256.Sum256([]byte(token)), nil
}

// writeToken makes the file at path with a random token. It never replaces a
// file, which is fs.ErrExist, and a crash leaves none that is half written.
func writeToken(what, path string) (string, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		return "", fmt.Errorf("make %s: %s is a symbolic link to a file that does not exist", what, path)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make %s: %w", what, err)
	}
	if err := secrets.CheckDir(dir); err != nil {
		return "", fmt.Errorf("make %s: %w", what, err)
	}
	f, err := os.CreateTemp(dir, ".coderd-token-*") // 0600
	if err != nil {
		return "", fmt.Errorf("make %s: %w", what, err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	token := rand.Text()
	_, err = f.WriteString(token + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", fmt.Errorf("make %s: %w", what, err)
	}
	if err := os.Link(f.Name(), path); err != nil {
		return "", fmt.Errorf("make %s: %w", what, err)
	}
	return token, nil
}
