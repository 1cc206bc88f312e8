package scrape

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
)

// contentTypes are what Prometheus's parser gets.
var contentTypes = map[string]string{
	Text:     "text/plain; version=0.0.4; charset=utf-8",
	Protobuf: accepts[Protobuf],
}

// count parses a kept answer as Prometheus does, and returns how many samples
// it has of the families.
func count(file string, ask Ask, families map[string]bool) (int, error) {
	b, err := readBody(file)
	if err != nil {
		return 0, err
	}
	text := b.text
	if ask.Gzip {
		z, err := gzip.NewReader(bytes.NewReader(text))
		if err != nil {
			return 0, fmt.Errorf("decompress a scrape: %w", err)
		}
		if text, err = io.ReadAll(z); err != nil {
			return 0, fmt.Errorf("decompress a scrape: %w", err)
		}
	}
	return countText(text, contentTypes[ask.Format], families)
}

func countText(text []byte, contentType string, families map[string]bool) (int, error) {
	p, err := textparse.New(text, contentType, labels.NewSymbolTable(), textparse.ParserOptions{})
	if err != nil {
		return 0, fmt.Errorf("parse a scrape: %w", err)
	}
	n := 0
	var l labels.Labels
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("parse a scrape after %d samples: %w", n, err)
		}
		if entry != textparse.EntrySeries {
			continue
		}
		p.Labels(&l)
		if families[l.Get(model.MetricNameLabel)] {
			n++
		}
	}
}

// Count scrapes into a file, parses that as Prometheus does, and returns how many
// samples it has of the families.
func (c *Client) Count(ctx context.Context, addr string, ask Ask, file string, families map[string]bool) (int, error) {
	if err := c.keep(ctx, addr, ask, file); err != nil {
		return 0, err
	}
	return count(file, ask, families)
}

// keep scrapes into a file.
func (c *Client) keep(ctx context.Context, addr string, ask Ask, file string) error {
	f, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("keep a scrape: %w", err)
	}
	_, err = c.Scrape(ctx, addr, ask, f)
	return errors.Join(err, f.Close())
}
