package image

import "sync"

// Progress is one step of a pull or import. Calls for one pull or import come
// one at a time, about one per MiB.
type Progress struct {
	Image      string // the reference, or what the archive calls the image
	Layer      string // digest of the layer that moved; "" for the image as a whole
	LayerBytes int64  // of this layer so far, as transported
	LayerTotal int64  // 0 if unknown
	Layers     int    // of the image
	LayersDone int
	Done       bool // the image is in the store
}

const progressStep = 1 << 20

// reporter makes the calls. A nil function makes none.
type reporter struct {
	mu       sync.Mutex
	call     func(Progress)
	image    string
	layers   int
	done     int
	bytes    map[string]int64
	reported map[string]int64
}

func newReporter(image string, call func(Progress)) *reporter {
	return &reporter{image: image, call: call, bytes: map[string]int64{}, reported: map[string]int64{}}
}

func (r *reporter) begin(layers int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.layers = layers
	r.tell(Progress{})
}

func (r *reporter) passed(l layerSource, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bytes[l.diff] += n
	if r.bytes[l.diff]-r.reported[l.diff] >= progressStep {
		r.reported[l.diff] = r.bytes[l.diff]
		r.tell(Progress{Layer: l.diff, LayerBytes: r.bytes[l.diff], LayerTotal: l.sizeBytes})
	}
}

func (r *reporter) layerDone(l layerSource) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done++
	r.tell(Progress{Layer: l.diff, LayerBytes: max(r.bytes[l.diff], l.sizeBytes), LayerTotal: l.sizeBytes})
}

func (r *reporter) finished() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tell(Progress{Done: true})
}

func (r *reporter) tell(p Progress) {
	if r.call == nil {
		return
	}
	p.Image, p.Layers, p.LayersDone = r.image, r.layers, r.done
	r.call(p)
}
