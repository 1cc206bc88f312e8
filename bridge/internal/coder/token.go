package coder

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coder/agentstatsd/secrets"
)

// tokenFile is the file that has the token. Nothing is kept of the token.
type tokenFile struct{ path string }

func (f tokenFile) read() (string, error) {
	token, _, err := secrets.ReadToken(f.path)
	return token, err
}

// rolesOfAll are the roles of a user who sees all workspaces.
var rolesOfAll = []string{"owner", "template-admin"}

// SeesAll reports whether the user of the API token has a role that sees all workspaces. A
// role that is not Coder's own may see them, too.
func (c *Client) SeesAll(ctx context.Context) (bool, error) {
	var user struct {
		Roles []struct {
			Name           string `json:"name"`
			OrganizationID id     `json:"organization_id"`
		} `json:"roles"`
	}
	err := c.get(ctx, "api/v2/users/me", nil, func(d *json.Decoder) error { return decodeWhole(d, &user) })
	if err != nil {
		return false, fmt.Errorf("read the roles of the API token's user: %w", err)
	}
	for _, role := range user.Roles {
		if slices.Contains(rolesOfAll, role.Name) && role.OrganizationID == (id{}) {
			return true, nil
		}
	}
	return false, nil
}

// TokenVersion identifies the token that the file has now, by a hash; it is zero if the
// file cannot be read.
func (c *Client) TokenVersion() [sha256.Size]byte {
	token, err := c.token.read()
	if err != nil {
		return [sha256.Size]byte{}
	}
	return sha256.Sum256([]byte(token))
}

// TokenExpiry returns when the API token expires; zero: never, or the token has no id.
// The API may refuse to tell: the error wraps ErrUnauthorized or ErrNotFound then.
func (c *Client) TokenExpiry(ctx context.Context) (time.Time, error) {
	token, err := c.token.read()
	if err != nil {
		return time.Time{}, fmt.Errorf("%w: %w", ErrUnauthorized, err)
	}
	id, _, found := strings.Cut(token, "-")
	if !found || id == "" || strings.ContainsAny(id, "/.?#%") {
		c.metrics.expiry.Set(0)
		return time.Time{}, nil
	}
	var key struct {
		ExpiresAt moment `json:"expires_at"`
	}
	err = c.get(ctx, "api/v2/users/me/keys/"+id, nil, func(d *json.Decoder) error { return decodeWhole(d, &key) })
	if err != nil {
		return time.Time{}, fmt.Errorf("read the expiry of the API token: %w", err)
	}
	expiry := time.Time(key.ExpiresAt)
	c.metrics.expiry.Set(0)
	if !expiry.IsZero() {
		c.metrics.expiry.Set(float64(expiry.Unix()))
	}
	return expiry, nil
}
