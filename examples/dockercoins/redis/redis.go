// Package redis speaks as much of Redis' protocol (RESP 2) as the coin miner
// needs: commands go out as arrays of bulk strings, several at once if wanted;
// replies come back as string, int64, nil or []any of these.
//
// A Client has one connection, made at the first command and again after a
// failure. It is safe for concurrent use; commands wait for each other. After a
// failed Do nobody knows which of its commands were carried out.
//
// Standard library only. Replies are bounded: strings to 1 MiB, arrays to 65,536
// elements and 8 levels.
package redis

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	maxString = 1 << 20
	maxArray  = 1 << 16
	maxDepth  = 8
	timeout   = 5 * time.Second
)

// Error is an answer of the server's, such as "WRONGPASS invalid password".
type Error string

func (e Error) Error() string { return "redis: " + string(e) }

// Client talks to one server.
type Client struct {
	address, password string

	mu   sync.Mutex
	conn net.Conn
	r    *bufio.Reader
}

// New does not connect. An empty password sends none.
func New(address, password string) *Client { return &Client{address: address, password: password} }

// Close ends the connection.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop()
}

func (c *Client) drop() {
	if c.conn != nil {
		c.conn.Close()
		c.conn, c.r = nil, nil
	}
}

// Do sends one command.
func (c *Client) Do(ctx context.Context, command ...string) (any, error) {
	replies, err := c.Pipeline(ctx, command)
	if err != nil {
		return nil, err
	}
	return replies[0], nil
}

// Pipeline sends commands in one go and returns their replies in order. The first
// command that the server refuses is the error; the others were carried out.
func (c *Client) Pipeline(ctx context.Context, commands ...[]string) ([]any, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.connect(ctx); err != nil {
		return nil, err
	}
	return c.exchange(ctx, commands)
}

func (c *Client) connect(ctx context.Context) error {
	if c.conn != nil {
		return nil
	}
	d := net.Dialer{Timeout: timeout}
	conn, err := d.DialContext(ctx, "tcp", c.address)
	if err != nil {
		return fmt.Errorf("reach redis: %w", err)
	}
	c.conn, c.r = conn, bufio.NewReader(conn)
	if c.password != "" {
		if _, err := c.exchange(ctx, [][]string{{"AUTH", c.password}}); err != nil {
			c.drop()
			return err
		}
	}
	return nil
}

func (c *Client) exchange(ctx context.Context, commands [][]string) ([]any, error) {
	deadline := time.Now().Add(timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	c.conn.SetDeadline(deadline)
	conn := c.conn
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	defer stop()
	var b []byte
	for _, cmd := range commands {
		b = Append(b, cmd...)
	}
	if _, err := c.conn.Write(b); err != nil {
		c.drop()
		return nil, fmt.Errorf("send to redis: %w", err)
	}
	replies := make([]any, len(commands))
	var refused error
	for i := range commands {
		v, err := Read(c.r)
		var e Error
		switch {
		case errors.As(err, &e):
			if refused == nil {
				refused = e
			}
		case err != nil:
			c.drop()
			return nil, fmt.Errorf("read from redis: %w", err)
		}
		replies[i] = v
	}
	return replies, refused
}

// Append writes one command behind b.
func Append(b []byte, command ...string) []byte {
	b = append(b, '*')
	b = strconv.AppendInt(b, int64(len(command)), 10)
	b = append(b, "\r\n"...)
	for _, w := range command {
		b = append(b, '$')
		b = strconv.AppendInt(b, int64(len(w)), 10)
		b = append(b, "\r\n"...)
		b = append(b, w...)
		b = append(b, "\r\n"...)
	}
	return b
}

// Read takes one reply. An error reply is an Error; after any other error the
// stream is of no more use.
func Read(r *bufio.Reader) (any, error) { return read(r, 0) }

func read(r *bufio.Reader, depth int) (any, error) {
	line, err := readLine(r)
	if err != nil {
		return nil, err
	}
	if line == "" {
		return nil, errors.New("the reply is empty")
	}
	rest := line[1:]
	switch line[0] {
	case '+':
		return rest, nil
	case '-':
		return nil, Error(rest)
	case ':':
		n, err := strconv.ParseInt(rest, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("reply %q: not a number", line)
		}
		return n, nil
	case '$':
		n, err := size(line, maxString)
		if err != nil || n < 0 {
			return nil, err
		}
		b := make([]byte, n+2)
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		if string(b[n:]) != "\r\n" {
			return nil, errors.New("a string in the reply has no end")
		}
		return string(b[:n]), nil
	case '*':
		n, err := size(line, maxArray)
		if err != nil || n < 0 {
			return nil, err
		}
		if depth == maxDepth {
			return nil, fmt.Errorf("the reply is nested deeper than %d", maxDepth)
		}
		list := []any{}
		for range n {
			v, err := read(r, depth+1)
			var e Error
			if errors.As(err, &e) { // an answer within EXEC's
				v, err = e, nil
			}
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	}
	return nil, fmt.Errorf("reply %q: not of the protocol", line)
}

// size is -1 for null.
func size(line string, limit int) (int, error) {
	n, err := strconv.Atoi(line[1:])
	if err != nil || n < -1 {
		return 0, fmt.Errorf("reply %q: not a size", line)
	}
	if n > limit {
		return 0, fmt.Errorf("reply %q: longer than %d", line, limit)
	}
	return n, nil
}

func readLine(r *bufio.Reader) (string, error) {
	b, err := r.ReadSlice('\n')
	if err != nil {
		return "", err // a line longer than the buffer is none of ours
	}
	line, ok := strings.CutSuffix(string(b), "\r\n")
	if !ok {
		return "", fmt.Errorf("reply %q: no end of line", b)
	}
	return line, nil
}
