package audit

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"proa.dev/env"
)

// Limits of the webhook, upstream's defaults for batches.
const (
	bufferEvents = 10000
	batchEvents  = 400
	batchWait    = 30 * time.Second
	sendTries    = 5
	sendFirst    = 10 * time.Second // before the second try
	sendLimit    = 30 * time.Second // of one try
	lastWords    = 5 * time.Second  // to send what is left at the end
)

// webhook posts batches of events as an EventList.
type webhook struct {
	url    string
	client *http.Client
	log    *Log
	wait   time.Duration
	first  time.Duration

	mu     sync.Mutex
	events [][]byte
	lost   int
	full   chan struct{} // a batch is complete
}

func openWebhook(path string, wait time.Duration, l *Log) (*webhook, error) {
	c, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("read audit webhook kubeconfig %q: %w", path, err)
	}
	client, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("read audit webhook kubeconfig %q: %w", path, err)
	}
	if wait <= 0 {
		wait = batchWait
	}
	return &webhook{url: c.Host, client: client, log: l, wait: wait, first: sendFirst, full: make(chan struct{}, 1)}, nil
}

// add never waits: what does not fit is lost.
func (w *webhook) add(event []byte) {
	w.mu.Lock()
	if len(w.events) >= bufferEvents {
		w.lost++
		w.mu.Unlock()
		w.log.errors.WithLabelValues("buffered").Inc()
		return
	}
	w.events = append(w.events, event)
	n := len(w.events)
	w.mu.Unlock()
	if n >= batchEvents {
		select {
		case w.full <- struct{}{}:
		default:
		}
	}
}

func (w *webhook) take() [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lost > 0 {
		w.log.log.Warn("audit events were lost", "plugin", "buffered", "events", w.lost, "error", "the buffer is full")
		w.lost = 0
	}
	n := min(len(w.events), batchEvents)
	batch := w.events[:n:n]
	if w.events = w.events[n:]; len(w.events) == 0 {
		w.events = nil
	}
	return batch
}

func (w *webhook) run(ctx context.Context) {
	defer w.client.CloseIdleConnections()
	// What is being sent when ctx ends has a few seconds more, and so has the rest.
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		if env.Sleep(sending, w.log.clock, lastWords) {
			cancel()
		}
	})
	defer stop()
	for {
		t := w.log.clock.NewTimer(w.wait)
		select {
		case <-w.full:
		case <-t.C():
		case <-ctx.Done():
			t.Stop()
			for batch := w.take(); len(batch) > 0; batch = w.take() {
				w.send(sending, batch)
			}
			return
		}
		t.Stop()
		// What is taken is sent: when ctx has ended meanwhile, the case above takes the rest.
		for more := true; more && ctx.Err() == nil; {
			batch := w.take()
			if len(batch) == 0 {
				break
			}
			w.send(sending, batch)
			w.mu.Lock()
			more = len(w.events) >= batchEvents
			w.mu.Unlock()
		}
	}
}

// send tries a batch several times, each time waiting half as long again; then
// it is lost.
func (w *webhook) send(ctx context.Context, batch [][]byte) {
	body := []byte(`{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[`)
	for i, e := range batch {
		if i > 0 {
			body = append(body, ',')
		}
		body = append(body, e...)
	}
	body = append(body, "]}"...)
	wait := w.first
	var err error
	for try := 1; ; try++ {
		var again bool
		if again, err = w.post(ctx, body); err == nil {
			return
		}
		if !again || try == sendTries || ctx.Err() != nil {
			break
		}
		env.Sleep(ctx, w.log.clock, wait) // an ended ctx ends the tries above
		wait += wait / 2
	}
	w.log.lost("webhook", len(batch), err)
}

func (w *webhook) post(ctx context.Context, body []byte) (again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, sendLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := w.client.Do(req)
	if err != nil {
		return true, fmt.Errorf("send audit events: %w", err)
	}
	defer res.Body.Close()
	io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10))
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return res.StatusCode == http.StatusTooManyRequests || res.StatusCode >= 500, fmt.Errorf("send audit events: the webhook answered %s", res.Status)
	}
	return false, nil
}
