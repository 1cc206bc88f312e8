package schema

import (
	"io/fs"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// firstExpanding is the first migration that had to let the program before it go on.
const firstExpanding = "00026"

// onlyAdds matches a statement that a program which does not know of it can go on with.
var onlyAdds = regexp.MustCompile(`^(CREATE TABLE \w+ \(|CREATE INDEX \w+ ON |ALTER TABLE \w+ SET \(\w+ = |ALTER TABLE \w+ ADD COLUMN \w+ \S+( \w+)*( DEFAULT \S.*)?$)`)

// Replicas are upgraded one after another, so the program before a migration runs on
// the schema after it for a while. What is to go is removed by a migration that stands
// here with the version whose program was the last one to use it.
func TestMigrationsOnlyAdd(t *testing.T) {
	removes := map[string]string{}
	comments := regexp.MustCompile(`(?m)^\s*--.*$`)
	for _, s := range []*Schema{SQLite, PostgreSQL} {
		files, err := s.Files()
		require.NoError(t, err)
		names, err := fs.Glob(files, "*.sql")
		require.NoError(t, err)
		checked := 0
		for _, name := range names {
			if name < firstExpanding || removes[name] != "" {
				continue
			}
			text, err := fs.ReadFile(files, name)
			require.NoError(t, err)
			up, down, both := strings.Cut(string(text), upEnds)
			require.True(t, both, "%s has no way back", name)
			require.NotEmpty(t, strings.TrimSpace(down), name)
			for statement := range strings.SplitSeq(comments.ReplaceAllString(up, ""), ";") {
				if statement = strings.TrimSpace(statement); statement == "" {
					continue
				}
				require.Regexp(t, onlyAdds, statement, "%s", name)
				if strings.Contains(statement, "ADD COLUMN") && strings.Contains(statement, "NOT NULL") {
					require.Contains(t, statement, "DEFAULT", "%s: programs that do not know the column insert rows", name)
				}
				checked++
			}
		}
		require.GreaterOrEqual(t, checked, 5)
	}
}

// Both databases have the same versions from the one on in which PostgreSQL came.
func TestVersionsOfBoth(t *testing.T) {
	versions := func(s *Schema) (list []string) {
		files, err := s.Files()
		require.NoError(t, err)
		names, err := fs.Glob(files, "*.sql")
		require.NoError(t, err)
		for _, name := range names {
			if name >= "00010" {
				list = append(list, name)
			}
		}
		return list
	}
	require.Equal(t, versions(PostgreSQL), versions(SQLite))
}
