package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// emptyLayer is the directory that stands in for the layers of an image that
// has none; its name is no chain ID, so it is never collected.
const emptyLayer = "empty"

// A layer is one unpacked layer, as its layer.json has it.
type layer struct {
	Chain     string `json:"chain"`
	Diff      string `json:"diff"`
	SizeBytes int64  `json:"sizeBytes"` // file contents, rounded up to blocks of 4 KiB
	Inodes    int64  `json:"inodes"`
}

// A layerSource is where one layer's tar comes from. open may be called again
// after a failure; it returns the bytes as transported, compressed or not.
type layerSource struct {
	diff      string // what the uncompressed bytes must hash to
	blob      string // what the bytes as transported must hash to; "" if unknown
	sizeBytes int64  // as transported; for progress
	open      func(ctx context.Context) (io.ReadCloser, error)
}

// A flight is one layer being made; those who want the same layer wait for it.
type flight struct {
	done chan struct{}
	err  error
}

func (s *Store) layerDir(chain string) string { return s.path("layers", hexOf(chain), "fs") }

// chainOf is the chain ID of a layer on top of the chain below it.
func chainOf(below, diff string) string {
	if below == "" {
		return diff
	}
	return digestOf([]byte(below + " " + diff))
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func sumOf(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }

func chainsOf(diffs []string) []string {
	chains := make([]string, len(diffs))
	below := ""
	for i, diff := range diffs {
		below = chainOf(below, diff)
		chains[i] = below
	}
	return chains
}

func (s *Store) readLayers() error {
	entries, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == emptyLayer {
			continue
		}
		var l layer
		raw, err := os.ReadFile(s.path("layers", e.Name(), "layer.json"))
		if err == nil {
			err = json.Unmarshal(raw, &l)
		}
		if err == nil && (!isDigest(l.Chain) || hexOf(l.Chain) != e.Name()) {
			err = errors.New("it is another layer's")
		}
		if err == nil {
			_, err = os.Lstat(s.layerDir(l.Chain))
		}
		if err != nil {
			s.cfg.Log.Warn("layer removed from the image store: its record is damaged", "layer", e.Name(), "cause", err)
			if err := os.RemoveAll(s.path("layers", e.Name())); err != nil {
				return err
			}
			continue
		}
		s.layers[l.Chain] = &l
	}
	return nil
}

// makeLayers makes sure that all layers of an image are unpacked. The caller has
// pinned their chain IDs. Layers are fetched and unpacked side by side and
// completed from the lowest up, since a layer may refer to those below it.
func (s *Store) makeLayers(ctx context.Context, sources []layerSource, report *reporter) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	diffs := make([]string, len(sources))
	for i, src := range sources {
		diffs[i] = src.diff
	}
	chains := chainsOf(diffs)
	var below <-chan struct{}
	var wg sync.WaitGroup
	for i := range sources {
		done := make(chan struct{})
		ready := below
		wg.Go(func() {
			err := s.ensureLayer(ctx, chains[:i+1], sources[i], ready, report)
			if err != nil {
				cancel(err) // only the first one counts
				return
			}
			report.layerDone(sources[i])
			close(done)
		})
		below = done
	}
	wg.Wait()
	return context.Cause(ctx)
}

// ensureLayer makes the layer chains[last] unless it is there or being made; if
// whoever is making it gives up for a reason of its own, this caller takes over.
func (s *Store) ensureLayer(ctx context.Context, chains []string, src layerSource, below <-chan struct{}, report *reporter) error {
	chain := chains[len(chains)-1]
	for {
		s.mu.Lock()
		if s.layers[chain] != nil {
			if _, err := os.Lstat(s.layerDir(chain)); err == nil {
				s.mu.Unlock()
				return nil
			}
			delete(s.layers, chain)
		}
		f := s.flights[chain]
		if f == nil {
			f = &flight{done: make(chan struct{})}
			s.flights[chain] = f
			s.mu.Unlock()
			f.err = s.makeLayer(ctx, chains, src, below, report)
			s.mu.Lock()
			delete(s.flights, chain)
			s.mu.Unlock()
			close(f.done)
			return f.err
		}
		s.mu.Unlock()
		select {
		case <-f.done:
			// Its failure may be its own: a cancelled pull, a bad credential, a
			// dead mirror. This caller's source decides for this caller.
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *Store) makeLayer(ctx context.Context, chains []string, src layerSource, below <-chan struct{}, report *reporter) (err error) {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	inSlot := true
	leave := func() {
		if inSlot {
			inSlot = false
			<-s.slots
		}
	}
	defer leave()

	chain := chains[len(chains)-1]
	temp := s.temp("layer")
	defer func() {
		if e := os.RemoveAll(temp); e != nil && err == nil {
			err = e
		}
		if err != nil {
			err = fmt.Errorf("unpack layer %q: %w", src.diff, err)
		}
	}()
	if err := os.MkdirAll(temp+"/fs", 0o700); err != nil {
		return err
	}
	u, err := newUnpacker(temp+"/fs", s.cfg.MaxLayerBytes, s.cfg.MaxLayerEntries)
	if err != nil {
		return err
	}
	defer u.close()
	if err := s.stream(ctx, u, src, temp+"/blob", report); err != nil {
		return err
	}
	leave()

	if below != nil {
		select {
		case <-below:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	lowers := make([]string, 0, len(chains)-1) // topmost first
	for i := len(chains) - 2; i >= 0; i-- {
		lowers = append(lowers, s.layerDir(chains[i]))
	}
	if err := u.finish(lowers); err != nil {
		return err
	}
	l := &layer{Chain: chain, Diff: src.diff, SizeBytes: u.bytes, Inodes: u.inodes}
	return s.publish(l, src, temp)
}

// publish brings a complete layer to disk and gives it its name.
func (s *Store) publish(l *layer, src layerSource, temp string) error {
	raw, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if err := os.WriteFile(temp+"/layer.json", raw, 0o600); err != nil {
		return err
	}
	dir, err := os.Open(temp)
	if err != nil {
		return err
	}
	defer dir.Close()
	// One flush for the whole file system costs less than one per file.
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("flush to disk: %w", err)
	}
	// Without mu: the flight is the only one that writes this chain ID, and
	// nobody collects what is not listed yet.
	if s.cfg.KeepBlobs && src.blob != "" {
		if err := os.Rename(temp+"/blob", s.blobPath(src.blob)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	to := s.path("layers", hexOf(l.Chain))
	if err := os.RemoveAll(to); err != nil { // a damaged one may be left
		return err
	}
	if err := os.Rename(temp, to); err != nil {
		return err
	}
	if err := syncDir(s.path("layers")); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.layers[l.Chain] = l
	return nil
}

// stream brings a layer's bytes through verification and decompression into u.
func (s *Store) stream(ctx context.Context, u *unpacker, src layerSource, keepAt string, report *reporter) (err error) {
	rc, err := src.open(ctx)
	if err != nil {
		return err
	}
	defer rc.Close()
	transported := sha256.New()
	sink := io.Writer(transported)
	if s.cfg.KeepBlobs && src.blob != "" {
		f, err := os.OpenFile(keepAt, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer func() {
			if e := f.Close(); err == nil {
				err = e
			}
		}()
		sink = io.MultiWriter(transported, f)
	}
	raw := bufio.NewReaderSize(io.TeeReader(&watchedReader{ctx: ctx, r: rc, layer: src, report: report}, sink), 256<<10)
	plain, err := decompress(raw)
	if err != nil {
		return err
	}
	defer plain.Close()

	unpacked := sha256.New()
	limited := &limitReader{r: plain, left: s.cfg.MaxLayerBytes, what: "the unpacked layer"}
	tarStream := io.TeeReader(limited, unpacked)
	if err := u.unpack(ctx, tarStream); err != nil {
		return err
	}
	// What follows the end of the tar belongs to both digests.
	if _, err := io.Copy(io.Discard, tarStream); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, raw); err != nil {
		return err
	}
	if got := sumOf(transported); src.blob != "" && got != src.blob {
		return &DigestError{What: "blob", Want: src.blob, Got: got}
	}
	if got := sumOf(unpacked); got != src.diff {
		return &DigestError{What: "unpacked layer", Want: src.diff, Got: got}
	}
	return nil
}

// A DigestError says that content is not what its digest promises.
type DigestError struct{ What, Want, Got string }

func (e *DigestError) Error() string {
	return fmt.Sprintf("%s has the digest %s instead of %s: the content is damaged or was replaced", e.What, e.Got, e.Want)
}

// restore unpacks layer i of an image again from its blob.
func (s *Store) restore(ctx context.Context, imageID string, i int) error {
	r := s.now.Load().images[imageID]
	if r == nil || i >= len(r.Layers) {
		return ErrNotFound
	}
	l := r.Layers[i]
	if !s.hasBlob(l.Blob) {
		return fmt.Errorf("layer %q is missing; remove the image and pull or import it again", l.Chain)
	}
	src := layerSource{diff: l.Diff, blob: l.Blob, open: func(context.Context) (io.ReadCloser, error) {
		return os.Open(s.blobPath(l.Blob))
	}}
	return s.ensureLayer(ctx, r.chains()[:i+1], src, nil, newReporter(imageID, nil))
}

func (s *Store) hasBlob(digest string) bool {
	if digest == "" {
		return false
	}
	_, err := os.Lstat(s.blobPath(digest))
	return err == nil
}

// writeBlob stores a config or manifest.
func (s *Store) writeBlob(digest string, data []byte) error {
	if s.hasBlob(digest) {
		if have, err := s.readBlob(digest, int64(len(data))); err == nil && len(have) == len(data) {
			return nil
		}
	}
	return s.writeFile(s.blobPath(digest), data, true)
}

func (s *Store) readBlob(digest string, limit int64) ([]byte, error) {
	f, err := os.Open(s.blobPath(digest))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readVerified(f, digest, limit, "blob")
}

// readVerified reads at most limit bytes that must hash to digest ("" for any).
func readVerified(r io.Reader, digest string, limit int64, what string) ([]byte, error) {
	data, err := io.ReadAll(&limitReader{r: r, left: limit, what: "the " + what})
	if err != nil {
		return nil, err
	}
	if got := digestOf(data); digest != "" && got != digest {
		return nil, &DigestError{What: what, Want: digest, Got: got}
	}
	return data, nil
}

// limitReader fails, other than io.LimitReader, when there is more than allowed.
type limitReader struct {
	r    io.Reader
	left int64
	what string
}

func (l *limitReader) Read(p []byte) (int, error) {
	if l.left < 0 {
		return 0, fmt.Errorf("%s is larger than allowed", l.what)
	}
	if int64(len(p)) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.r.Read(p)
	l.left -= int64(n)
	if l.left < 0 {
		return n - 1, fmt.Errorf("%s is larger than allowed", l.what)
	}
	return n, err
}

// watchedReader ends with its context and reports what passes.
type watchedReader struct {
	ctx    context.Context
	r      io.Reader
	layer  layerSource
	report *reporter
}

func (w *watchedReader) Read(p []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, context.Cause(w.ctx)
	}
	n, err := w.r.Read(p)
	w.report.passed(w.layer, int64(n))
	return n, err
}

// compression tells by the first six bytes what data is compressed with; the
// media type is often wrong.
func compression(head []byte) string {
	has := func(magic string) bool { return strings.HasPrefix(string(head), magic) }
	switch {
	case has("\x1f\x8b"):
		return "gzip"
	case has("\x28\xb5\x2f\xfd"), len(head) >= 4 && head[0]&0xf0 == 0x50 && string(head[1:4]) == "\x2a\x4d\x18":
		return "zstd"
	case has("BZh"):
		return "bzip2"
	case has("\xfd7zXZ\x00"):
		return "xz"
	}
	return ""
}

func decompress(raw *bufio.Reader) (io.ReadCloser, error) {
	head, err := raw.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch kind := compression(head); kind {
	case "":
		return io.NopCloser(raw), nil
	case "gzip":
		return gzip.NewReader(raw)
	case "zstd":
		d, err := zstd.NewReader(raw, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	default:
		return nil, fmt.Errorf("compressed with %s; use gzip, zstd or none", kind)
	}
}
