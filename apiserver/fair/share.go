package fair

import "math"

// claim is one level's part in the sharing of seats.
type claim struct{ lower, upper, target float64 }

// share gives each claim p times its target, held within its bounds, with the p
// at which everything together is total. When even the lower bounds are more than
// total, or the upper ones less, those are the answer.
func share(total float64, claims []claim) (seats []float64, p float64) {
	const least = 0.001 // of a target, so that everyone can grow
	at := func(p float64) (sum float64) {
		for _, c := range claims {
			sum += min(max(p*max(c.target, least), c.lower), c.upper)
		}
		return sum
	}
	low, high := 0.0, 1.0
	for high < 1e9 && at(high) < total {
		high *= 2
	}
	// The sum grows with p and is continuous: halving finds it.
	for range 100 {
		if mid := (low + high) / 2; at(mid) < total {
			low = mid
		} else {
			high = mid
		}
	}
	seats = make([]float64, len(claims))
	for i, c := range claims {
		seats[i] = min(max(high*max(c.target, least), c.lower), c.upper)
	}
	return seats, high
}

// smoothing is the weight of the past in a level's smoothed demand.
const smoothing = 0.977

// borrow sets the seats of all levels for the next period from what they could
// have used in the last one. The caller holds no lock of a level.
func (d *Dispatcher) borrow(c *config) {
	now := d.clock.Now()
	remaining := c.nominal
	var lowers, needs int // sums over limited levels
	claims := make([]claim, 0, len(c.levels))
	limited := make([]*level, 0, len(c.levels))
	need := make([]int, 0, len(c.levels))
	for _, l := range c.levels {
		l.mu.Lock()
		l.advance(now)
		o, ok := l.demand.take()
		if ok {
			l.last = o
			envelope := o.average + o.deviation
			l.smoothed = max(envelope, smoothing*l.smoothed+(1-smoothing)*envelope)
		} else {
			l.last.high = o.high
		}
		if l.shape.Exempt {
			l.limit = max(l.lower, int(l.last.high))
			remaining -= l.limit
			l.mu.Unlock()
			continue
		}
		n := max(l.lower, min(l.nominal, int(math.Round(l.last.high))))
		l.target = max(float64(n), l.smoothed)
		claims = append(claims, claim{float64(n), float64(l.upper), l.target})
		l.mu.Unlock()
		limited, need = append(limited, l), append(need, n)
		lowers += l.lower
		needs += n
	}
	seats := make([]int, len(limited))
	fraction := 0.0
	switch {
	case remaining <= lowers:
		for i, l := range limited {
			seats[i] = l.lower
		}
	case remaining <= needs:
		part := float64(remaining-lowers) / float64(needs-lowers)
		for i, l := range limited {
			seats[i] = l.lower + int(math.Round(float64(need[i]-l.lower)*part))
		}
	default:
		var got []float64
		got, fraction = share(float64(remaining), claims)
		for i := range limited {
			seats[i] = int(math.Round(got[i]))
		}
	}
	d.fraction.Store(math.Float64bits(fraction))
	for i, l := range limited {
		l.mu.Lock()
		l.relimit(now, seats[i])
		l.mu.Unlock()
	}
}
