package main

import (
	"bytes"
	"crypto/sha256"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTokenIsMadeOnce(t *testing.T) {
	var logged bytes.Buffer
	log := slog.New(slog.NewTextHandler(&logged, nil))
	path := filepath.Join(t.TempDir(), "sub", "coderd-token")

	first, err := loadTokenHash(path, log)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, "-rw-------", info.Mode().String())

	second, err := loadTokenHash(path, log)
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

func TestTokenFileErrors(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	short := filepath.Join(t.TempDir(), "short")
	require.NoError(t, os.WriteFile(short, []byte("hunter2\n"), 0o600))
	_, err := loadTokenHash(short, log)
	require.ErrorContains(t, err, "holds 7 bytes, at least 16 are needed")
	_, err = loadTokenHash(t.TempDir(), log)
	require.ErrorContains(t, err, "is a directory")
}

func TestOpenTokenFileIsWarnedOf(t *testing.T) {
	var logged bytes.Buffer
	path := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(path, []byte("0123456789abcdef"), 0o644))
	_, err := loadTokenHash(path, slog.New(slog.NewTextHandler(&logged, nil)))
	require.NoError(t, err)
	require.Contains(t, logged.String(), "others can read coderd's token")
	require.NotContains(t, logged.String(), "0123456789abcdef")
}
