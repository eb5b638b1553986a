package h2

import (
	"encoding/binary"
	"errors"
	"strconv"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Everything here is under conn.mu.

// putFrame queues a frame.
func (c *conn) putFrame(t http2.FrameType, flags http2.Flags, id uint32, payload []byte) {
	c.putHead(t, flags, id, len(payload))
	c.out = append(c.out, payload...)
}

func (c *conn) putHead(t http2.FrameType, flags http2.Flags, id uint32, n int) {
	c.out = append(c.out, byte(n>>16), byte(n>>8), byte(n), byte(t), byte(flags), byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

func settings(list ...http2.Setting) []byte {
	var b []byte
	for _, s := range list {
		b = binary.BigEndian.AppendUint16(b, uint16(s.ID))
		b = binary.BigEndian.AppendUint32(b, s.Val)
	}
	return b
}

// putWindow tells of n bytes more that may be sent.
func (c *conn) putWindow(id uint32, n int) {
	if n > 0 {
		c.putFrame(http2.FrameWindowUpdate, 0, id, binary.BigEndian.AppendUint32(nil, uint32(n)))
	}
}

func (c *conn) putGoAway(code http2.ErrCode) {
	b := binary.BigEndian.AppendUint32(nil, c.last)
	c.putFrame(http2.FrameGoAway, 0, 0, binary.BigEndian.AppendUint32(b, uint32(code)))
}

// putHeaders queues a header block. code 0: trailers.
func (c *conn) putHeaders(id uint32, code int, fields []hpack.HeaderField, end bool) {
	c.block.Reset()
	if code != 0 {
		c.enc.WriteField(hpack.HeaderField{Name: ":status", Value: strconv.Itoa(code)})
	}
	for _, f := range fields {
		c.enc.WriteField(f)
	}
	block := c.block.Bytes()
	t, flags := http2.FrameHeaders, http2.Flags(0)
	if end {
		flags = http2.FlagHeadersEndStream
	}
	for {
		n := min(len(block), c.frame)
		if n == len(block) {
			flags |= http2.FlagHeadersEndHeaders
		}
		c.putFrame(t, flags, id, block[:n])
		if block = block[n:]; len(block) == 0 {
			return
		}
		t, flags = http2.FrameContinuation, 0
	}
}

// flush writes what is queued, unless somebody does already, who will take it along.
// mu is free while it writes.
func (c *conn) flush() {
	if c.writing {
		return
	}
	c.writing = true
	for len(c.out) > 0 && c.err == nil {
		b := c.out
		c.out, c.spare = c.spare[:0], nil
		c.mu.Unlock()
		_, err := c.tc.Write(b)
		c.mu.Lock()
		if cap(b) <= keepQueue {
			c.spare = b
		}
		if err != nil {
			c.fail(err)
		}
		c.cond.Broadcast()
	}
	if c.err != nil {
		c.out = nil
	}
	c.writing = false
	c.cond.Broadcast()
}

// kick has what is queued written by somebody else: who reads the connection must
// not wait for a client that does not.
func (c *conn) kick() {
	if len(c.out) == 0 || c.writing || c.err != nil {
		return
	}
	c.handlers.Go(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.flush()
	})
}

var errStreamClosed = errors.New("http2: stream closed")

// send queues an answer's headers (if code is not 0), data, and its end, and writes.
// Data waits for the client's windows.
func (c *conn) send(st *stream, code int, fields []hpack.HeaderField, data []byte, end bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := st.broken(); err != nil {
		return err
	}
	ended := false
	if code != 0 {
		st.expects = false
		ended = end && len(data) == 0
		c.putHeaders(st.id, code, fields, ended)
	}
	for len(data) > 0 {
		n := int(min(int64(len(data)), st.window, c.window, int64(c.frame)))
		if n <= 0 || len(c.out) >= queueSoft {
			if len(c.out) > 0 && !c.writing {
				c.flush()
			} else {
				c.cond.Wait()
			}
			if err := st.broken(); err != nil {
				return err
			}
			continue
		}
		flags := http2.Flags(0)
		if ended = end && n == len(data); ended {
			flags = http2.FlagDataEndStream
		}
		st.window -= int64(n)
		c.window -= int64(n)
		c.putFrame(http2.FrameData, flags, st.id, data[:n])
		data = data[n:]
	}
	if end && !ended {
		c.putFrame(http2.FrameData, http2.FlagDataEndStream, st.id, nil)
	}
	if end {
		c.finish(st)
	}
	c.flush()
	return nil
}

// sendTrailers ends an answer with trailers.
func (c *conn) sendTrailers(st *stream, fields []hpack.HeaderField) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := st.broken(); err != nil {
		return err
	}
	c.putHeaders(st.id, 0, fields, true)
	c.finish(st)
	c.flush()
	return nil
}

// finish closes a stream whose answer is queued whole. A client that has not sent
// all of its request may stop.
func (c *conn) finish(st *stream) {
	if !st.ended {
		c.putFrame(http2.FrameRSTStream, 0, st.id, binary.BigEndian.AppendUint32(nil, uint32(http2.ErrCodeNo)))
	}
	c.close(st, errStreamClosed)
}

// reset ends a stream, known or not.
func (c *conn) reset(id uint32, code http2.ErrCode, unknown bool) {
	st := c.streams[id]
	if st == nil && !unknown || c.err != nil {
		return
	}
	c.putFrame(http2.FrameRSTStream, 0, id, binary.BigEndian.AppendUint32(nil, uint32(code)))
	if st != nil {
		c.close(st, http2.StreamError{StreamID: id, Code: code})
	}
	c.kick()
}

// close forgets a stream.
func (c *conn) close(st *stream, err error) {
	if st.err != nil {
		return
	}
	st.err = err
	delete(c.streams, st.id)
	st.endBody(err)
	// What the handler has not read goes back to the connection.
	if n := len(st.body) - st.read; n > 0 {
		c.putWindow(0, c.recv.give(n))
		st.read = len(st.body)
	}
	st.cancel()
	c.parted()
	if len(c.streams) == 0 {
		c.lastBusy = c.lastRead
	}
	c.cond.Broadcast()
}
