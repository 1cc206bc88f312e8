// Package admin asks a running service, by its HTTP listener, to do something.
package admin

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coder/serpent"

	"github.com/coder/agentstatsd/secrets"
)

// timeout bounds a request. A reload may wait for the parts of a large configuration.
const timeout = time.Minute

// maxAnswer bounds what is read of an answer.
const maxAnswer = 1 << 20

// Client reaches the HTTP listener of a service. Its fields are set by its Options.
type Client struct {
	// URL of the listener; empty: there is none.
	URL                        string
	caFile, user, passwordFile string
}

// urlFlag names the service that runs, in each command that asks one.
const urlFlag = "running"

// Options are the flags of a client, with the default and the description of its URL.
func (c *Client) Options(urlDefault, description string) serpent.OptionSet {
	return serpent.OptionSet{
		{Flag: urlFlag, Default: urlDefault, Description: description, Value: serpent.StringOf(&c.URL)},
		{Flag: "ca-file", Description: "Certificates that the one of https is verified against, PEM. Empty: the system's.", Value: serpent.StringOf(&c.caFile)},
		{Flag: "user", Description: "User of the web configuration. Needs --password-file.", Value: serpent.StringOf(&c.user)},
		{Flag: "password-file", Description: "A file with the password of --user.", Value: serpent.StringOf(&c.passwordFile)},
	}
}

// Post posts to a path and decodes the answer into answer, also if the status is one of an
// error and it is JSON.
func (c *Client) Post(ctx context.Context, path string, query url.Values, answer any) error {
	request, client, err := c.request(ctx, path, query)
	if err != nil {
		return err
	}
	resp, err := client.Do(request)
	if err != nil {
		if op := new(net.OpError); errors.As(err, &op) {
			err = op // without the URL, which may have a password
		}
		return fmt.Errorf("ask the service, which --%s names: %w", urlFlag, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the answer of the service: %w", err)
	}
	isJSON := strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json")
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return errors.New("the service does not take this: it was started without --web-enable-lifecycle, or is an older one")
	case resp.StatusCode == http.StatusUnauthorized:
		return errors.New("the service wants another user and password: give --user and --password-file")
	case !isJSON:
		return fmt.Errorf("the service answers %s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	if err := json.Unmarshal(body, answer); err != nil {
		return fmt.Errorf("read the answer of the service: %w", err)
	}
	return nil
}

func (c *Client) request(ctx context.Context, path string, query url.Values) (*http.Request, *http.Client, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
		return nil, nil, errors.New("want the URL of the service's HTTP listener, such as http://127.0.0.1:2112, without a user")
	}
	u.Path, u.RawQuery = path, query.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), http.NoBody)
	if err != nil {
		return nil, nil, fmt.Errorf("ask the service: %w", err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.caFile != "" {
		text, _, err := secrets.ReadFile(c.caFile)
		if err != nil {
			return nil, nil, fmt.Errorf("--ca-file: %w", err)
		}
		if config.RootCAs, _, err = secrets.ParseCAs(c.caFile, text); err != nil {
			return nil, nil, fmt.Errorf("--ca-file: %w", err)
		}
	}
	if c.user != "" {
		if c.passwordFile == "" {
			return nil, nil, errors.New("--user: want --password-file with it")
		}
		text, _, err := secrets.ReadFile(c.passwordFile)
		if err != nil {
			return nil, nil, fmt.Errorf("--password-file: %w", err)
		}
		request.SetBasicAuth(c.user, strings.TrimRight(string(text), "\r\n"))
	}
	return request, &http.Client{Timeout: timeout, Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}, nil
}
