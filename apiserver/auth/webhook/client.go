// Package webhook asks an outside service who a token belongs to (TokenReview)
// and whether a request is allowed (SubjectAccessReview); Kubernetes docs,
// "Webhook Token Authentication", "Webhook Mode", "Using configuration for
// authorization". The service and the credentials for it are in a file in the
// form of kubeconfig.
//
// A question is sent again after half a second, then half as much longer each
// time, five times in all, while the service answers 429 or 5xx or cannot be
// reached, and never longer than its time limit. Answers are remembered for the
// configured times; a service that hangs harms only those who need its answer.
// Answers above 1 MiB are refused.
package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"proa.dev/env"
)

// Retry of questions; the zero value is upstream's.
type Retry struct {
	First time.Duration // before the second try; 0: 500 ms
	Tries int           // 0: 5
	Clock env.Clock     // of the pauses; nil: the machine's
}

const maxAnswer = 1 << 20

// service posts questions to one URL.
type service struct {
	url     string
	client  *http.Client
	timeout time.Duration
	retry   Retry
}

// open reads a kubeconfig file; path "" is the configuration inside a cluster.
func open(path string, timeout time.Duration, retry Retry) (*service, error) {
	var c *rest.Config
	var err error
	if path == "" {
		c, err = rest.InClusterConfig()
	} else {
		c, err = clientcmd.BuildConfigFromFlags("", path)
	}
	if err != nil {
		return nil, fmt.Errorf("read webhook kubeconfig %q: %w", path, err)
	}
	client, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("read webhook kubeconfig %q: %w", path, err)
	}
	if retry.First == 0 {
		retry.First = 500 * time.Millisecond
	}
	if retry.Clock == nil {
		retry.Clock = env.SystemClock()
	}
	if retry.Tries == 0 {
		retry.Tries = 5
	}
	return &service{url: c.Host, client: client, timeout: timeout, retry: retry}, nil
}

// Close gives idle connections back.
func (s *service) Close() { s.client.CloseIdleConnections() }

// errStatus is an answer that is none.
type errStatus struct {
	code int
	text string
}

func (e *errStatus) Error() string { return fmt.Sprintf("webhook answered %d: %.200s", e.code, e.text) }

// ask posts a question and reads the answer into it.
func (s *service) ask(ctx context.Context, question, answer any) error {
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	wait := s.retry.First
	for try := 1; ; try++ {
		err := s.once(ctx, body, answer)
		var st *errStatus
		again := err != nil && (!errors.As(err, &st) || st.code == http.StatusTooManyRequests || st.code >= 500)
		if !again || try >= s.retry.Tries || ctx.Err() != nil {
			return err
		}
		if !env.Sleep(ctx, s.retry.Clock, wait) {
			return fmt.Errorf("%w (%w)", ctx.Err(), err)
		}
		wait += wait / 2
	}
}

func (s *service) once(ctx context.Context, body []byte, answer any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	res, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil:
		return err
	case res.StatusCode < 200 || res.StatusCode > 299:
		return &errStatus{res.StatusCode, string(data)}
	case len(data) > maxAnswer:
		return &errStatus{http.StatusRequestEntityTooLarge, "the answer is too long"}
	}
	if err := json.Unmarshal(data, answer); err != nil {
		return &errStatus{http.StatusOK, "no JSON: " + err.Error()}
	}
	return nil
}
