package main

import (
	"bytes"
	"crypto/sha256"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/datadir"
	"github.com/coder/agentstatsd/secrets"
)

// loadToken returns the hash of the token in a file of coderd's, which is made if it is not
// there.
func loadToken(path string, own bool, log *slog.Logger) ([sha256.Size]byte, error) {
	f := tokenFile{flag: "coderd-token-file", what: tokenOfCoderd, path: path, own: own}
	tokens, err := f.read(true, log)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	return tokens[0].Hash, nil
}

func TestTokenIsMadeOnce(t *testing.T) {
	var logged bytes.Buffer
	log := slog.New(slog.NewTextHandler(&logged, nil))
	path := filepath.Join(t.TempDir(), "sub", "coderd-token")

	first, err := loadToken(path, false, log)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, "-rw-------", info.Mode().String())

	second, err := loadToken(path, false, log)
	require.NoError(t, err)
	require.Equal(t, first, second, "a token that exists is kept")

	b, err := os.ReadFile(path)
	require.NoError(t, err)
	token := strings.TrimSpace(string(b))
	require.Equal(t, sha256.Sum256([]byte(token)), first)
	require.NotContains(t, logged.String(), token)
	entries, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, entries, 1, "no temporary file stays")
}

// The tokens of those who only push, or read, are made if they are asked for, and are not
// coderd's.
func TestOtherTokens(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	c := &config{dataDir: t.TempDir()}
	tokens, err := c.readTokens(true, log)
	require.NoError(t, err)
	require.Empty(t, tokens.Push)
	require.Empty(t, tokens.Operator)
	entries, err := os.ReadDir(c.dataDir)
	require.NoError(t, err)
	require.Len(t, entries, 1, "none is made unless it is asked for")

	c.pushTokenFile, c.operatorTokenFile = filepath.Join(t.TempDir(), "push-token"), filepath.Join(t.TempDir(), "operator-token")
	_, err = c.readTokens(false, log)
	require.ErrorIs(t, err, os.ErrNotExist, "a reload makes none")
	tokens, err = c.readTokens(true, log)
	require.NoError(t, err)
	require.NotEqual(t, tokens.Coderd[0].Hash, tokens.Push[0].Hash)
	for path, of := range map[string][]grpcserver.Token{c.pushTokenFile: tokens.Push, c.operatorTokenFile: tokens.Operator} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, "-rw-------", info.Mode().String())
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, []grpcserver.Token{grpcserver.NewToken(secrets.DefaultTokenName, string(bytes.TrimSpace(b)))}, of)
	}

	c.pushTokenFile = c.tokenFile()
	_, err = c.readTokens(true, log)
	require.EqualError(t, err, `tokens: want one of its own for "default" of push, got that of another`)
	c.pushTokenFile = t.TempDir()
	_, err = c.readTokens(true, log)
	require.ErrorContains(t, err, "--push-token-file: read the token to push: ")
}

// Replicas do not make a token each.
func TestReplicasMakeNoToken(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	c := &config{dataDir: t.TempDir(), databaseURL: "postgres://h/d"}
	_, err := c.readTokens(true, log)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "give the file to each by --coderd-token-file")
	require.NoFileExists(t, c.tokenFile())
	require.NoError(t, os.WriteFile(c.tokenFile(), []byte("blue: 0123456789abcdef\ngreen: 0123456789abcdeg\n"), 0o600))
	tokens, err := c.readTokens(true, log)
	require.NoError(t, err)
	require.Equal(t, []grpcserver.Token{grpcserver.NewToken("blue", "0123456789abcdef"), grpcserver.NewToken("green", "0123456789abcdeg")}, tokens.Coderd)
	first, err := readToken(tokenOfCoderd, c.tokenFile(), log)
	require.NoError(t, err)
	require.Equal(t, "0123456789abcdef", first)
}

func TestTokenFileErrors(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	short := filepath.Join(t.TempDir(), "short")
	require.NoError(t, os.WriteFile(short, []byte("hunter2\n"), 0o600))
	_, err := loadToken(short, false, log)
	require.ErrorContains(t, err, "holds 7 bytes, at least 16 are needed")
	_, err = loadToken(t.TempDir(), false, log)
	require.ErrorContains(t, err, "is a directory")
	dangling := filepath.Join(t.TempDir(), "dangling")
	require.NoError(t, os.Symlink("nowhere", dangling))
	_, err = loadToken(dangling, false, log)
	require.ErrorContains(t, err, "dangling is a symbolic link to a file that does not exist")
}

func TestOpenTokenFileIsWarnedOf(t *testing.T) {
	var logged bytes.Buffer
	path := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(path, []byte("0123456789abcdef"), 0o644))
	_, err := loadToken(path, false, slog.New(slog.NewTextHandler(&logged, nil)))
	require.NoError(t, err)
	require.Contains(t, logged.String(), "others can read coderd's token")
	require.NotContains(t, logged.String(), "0123456789abcdef")
}

// What stands where the service makes its own files may be planted; a file that is
// named by a flag is the operator's.
func TestPlantedFilesAreRefused(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for _, name := range append([]string{"coderd-token"}, datadir.Files...) {
		dir := t.TempDir()
		elsewhere := filepath.Join(t.TempDir(), "elsewhere")
		require.NoError(t, os.WriteFile(elsewhere, []byte("0123456789abcdef"), 0o600))
		require.NoError(t, os.Symlink(elsewhere, filepath.Join(dir, name)))
		path := filepath.Join(dir, "coderd-token")
		if name == "coderd-token" {
			_, err := loadToken(path, true, log)
			require.ErrorContains(t, err, "coderd-token is a symbolic link, want a regular file")
			_, err = loadToken(path, false, log)
			require.NoError(t, err)
			continue
		}
		_, err := datadir.Lock(dir)
		require.ErrorContains(t, err, "data directory: "+filepath.Join(dir, name)+" is a symbolic link, want a regular file")
	}
}

// Processes that start at once agree on a token that none of them found.
func TestProcessesAgreeOnToken(t *testing.T) {
	for range 50 {
		path := filepath.Join(t.TempDir(), "coderd-token")
		hashes := make([][sha256.Size]byte, 8)
		errs := make([]error, len(hashes))
		var all sync.WaitGroup
		for i := range hashes {
			all.Go(func() { hashes[i], errs[i] = loadToken(path, true, slog.New(slog.DiscardHandler)) })
		}
		all.Wait()
		for i := range hashes {
			require.NoError(t, errs[i])
			require.Equal(t, hashes[0], hashes[i])
		}
	}
}
