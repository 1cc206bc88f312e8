package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// authorities returns the public authorities that Mozilla trusts without a condition, as
// PEM, by name. A condition, as that a certificate is older than a date, cannot be said
// in a file: an authority that has one is left out.
func authorities() ([]byte, error) {
	type authority struct{ name, pem string }
	var all []authority
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue
		}
		certificate, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			return nil, fmt.Errorf("parse an authority: %w", err)
		}
		block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate})
		all = append(all, authority{certificate.Subject.String(), string(block)})
	}
	slices.SortFunc(all, func(a, b authority) int { return strings.Compare(a.name+a.pem, b.name+b.pem) })
	var file bytes.Buffer
	for _, a := range all {
		fmt.Fprintf(&file, "# %s\n%s\n", a.name, a.pem)
	}
	return file.Bytes(), nil
}
