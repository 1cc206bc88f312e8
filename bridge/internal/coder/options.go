package coder

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// Options of a Client. A zero field takes its default.
type Options struct {
	// URL is the access URL of Coder, http or https. Required.
	URL string
	// TokenFile has the API token of a user who sees all workspaces. It is read for each
	// request. Required.
	TokenFile string
	// MaxRequestsPerSecond bounds the requests, unless SetShare says how many share them;
	// default 5.
	MaxRequestsPerSecond float64
	// MaxBytes bounds an answer; default 32 MiB. A page of workspaces that is larger is
	// asked for again in smaller ones.
	MaxBytes int64
	// Timeout bounds a request from its begin to the end of the answer; default 1 min.
	Timeout time.Duration
	// PageSize is the number of workspaces that are asked for at once; default 100.
	PageSize int
	// TLS of an https URL; nil: the system's certificates verify coderd.
	TLS *tls.Config
	// Transport makes the requests; nil: net/http's, with TLS.
	Transport http.RoundTripper
}

func (o Options) withDefaults() Options {
	o.MaxRequestsPerSecond = cmp.Or(o.MaxRequestsPerSecond, 5)
	o.MaxBytes = cmp.Or(o.MaxBytes, 32<<20)
	o.Timeout = cmp.Or(o.Timeout, time.Minute)
	o.PageSize = cmp.Or(o.PageSize, 100)
	if o.Transport == nil {
		o.Transport = &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: o.TLS, ForceAttemptHTTP2: true,
			TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: time.Minute,
		}
	}
	return o
}

func (o Options) validate() (*url.URL, error) {
	base, err := url.Parse(o.URL)
	switch {
	case err != nil:
		return nil, errors.New("URL: want one, got what cannot be parsed") // it may have a password
	case base.Scheme != "http" && base.Scheme != "https", base.Host == "":
		return nil, errors.New("URL: want http://host or https://host")
	case base.User != nil, base.RawQuery != "", base.Fragment != "":
		return nil, errors.New("URL: want it without user, query and fragment")
	case o.TokenFile == "":
		return nil, errors.New("token file: want one")
	case !(o.MaxRequestsPerSecond > 0):
		return nil, fmt.Errorf("max requests per second: want more than 0, got %v", o.MaxRequestsPerSecond)
	case o.MaxBytes < 1:
		return nil, fmt.Errorf("max bytes: want at least 1, got %d", o.MaxBytes)
	case o.Timeout < 0:
		return nil, fmt.Errorf("timeout: want at least 0 s, got %v", o.Timeout)
	case o.PageSize < 1 || o.PageSize > 1000:
		return nil, fmt.Errorf("page size: want 1 to 1000, got %d", o.PageSize)
	}
	return base, nil
}
