package apiserver_test

import (
	"crypto/tls"
	"testing"

	"proa.dev/apiserver/apitest"
	"proa.dev/client"
	"proa.dev/client/clienttest"
)

func TestLocalClient(t *testing.T) {
	clienttest.Run(t, func(t *testing.T) client.Client { return apitest.Start(t, nil).Server.Local(apitest.Admin) })
}

func TestHTTPClient(t *testing.T) {
	for _, test := range []struct {
		name string
		json bool
	}{{"json", true}, {"protobuf", false}} {
		t.Run(test.name, func(t *testing.T) {
			clienttest.Run(t, func(t *testing.T) client.Client {
				c, err := client.NewHTTP(client.HTTPConfig{Servers: []string{apitest.Start(t, nil).HTTP.URL}, JSON: test.json,
					TLS: &tls.Config{InsecureSkipVerify: true}, Token: func() (string, error) { return "admin", nil }})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(c.Close)
				return c
			})
		})
	}
}
