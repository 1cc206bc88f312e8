// Authorities says whether the system's authorities have issued the certificate that comes
// over standard input, as DER.
package main

import (
	"crypto/x509"
	"fmt"
	"io"
	"os"
)

func main() {
	der, err := io.ReadAll(os.Stdin)
	if err != nil {
		panic(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	if _, err := certificate.Verify(x509.VerifyOptions{}); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("trusted")
}
