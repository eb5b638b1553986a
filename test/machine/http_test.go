package machine

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"proa.dev/test/machine/load"
)

// get asks the web program once, on a connection of its own.
func get(url string) (load.Answer, error) {
	var a load.Answer
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := c.Get(url)
	if err != nil {
		return a, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return a, err
	}
	if res.StatusCode != http.StatusOK {
		return a, fmt.Errorf("%s: %s", res.Status, data)
	}
	return a, json.Unmarshal(data, &a)
}
