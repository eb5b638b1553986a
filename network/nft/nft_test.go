package nft_test

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"proa.dev/network/netlab"
	"proa.dev/network/nft"
)

func open(t testing.TB) *nft.Conn {
	t.Helper()
	ns := netlab.New(t, "nft")
	var c *nft.Conn
	ns.Must(func() (err error) { c, err = nft.Open(); return err })
	t.Cleanup(func() { c.Close() })
	return c
}

func key(n int) []byte {
	return nft.Key(nft.AddrBytes(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})), nft.ProtoBytes(6), nft.PortBytes(80))
}

var services = &nft.Set{Name: "m", Key: []nft.Type{nft.IPv4, nft.Proto, nft.Port}, Data: []nft.Type{nft.Mark, nft.Mark}}

func value(n uint32) []byte { return nft.Key(nft.NumberBytes(n), nft.NumberBytes(1)) }

func TestBatchIsAllOrNothing(t *testing.T) {
	c := open(t)
	var b nft.Batch
	b.ReplaceTable("t")
	b.AddSet("t", services)
	var many []nft.Element
	for i := range 20000 { // more than one attribute holds
		many = append(many, nft.Element{Key: key(i), Data: value(uint32(i))})
	}
	b.Add("t", "m", many...)
	if err := c.Apply(&b); err != nil {
		t.Fatal(err)
	}
	got, err := c.Elements("t", "m")
	if err != nil || len(got) != len(many) {
		t.Fatalf("%d elements, %v; want %d", len(got), err, len(many))
	}

	// A bad part spoils the whole, and the error names it.
	b = nft.Batch{}
	b.Delete("t", "m", many[0])
	b.Add("t", "nowhere", many[0])
	err = c.Apply(&b)
	var refused *nft.Error
	if !errors.As(err, &refused) || refused.Deed != "add element to nowhere" || !errors.Is(err, unix.ENOENT) {
		t.Errorf("refusal: %v", err)
	}
	if got, _ := c.Elements("t", "m"); len(got) != len(many) {
		t.Errorf("%d elements after a refused batch", len(got))
	}

	// Another value takes the place in one transaction.
	b = nft.Batch{}
	b.Delete("t", "m", nft.Element{Key: key(5)})
	b.Add("t", "m", nft.Element{Key: key(5), Data: value(77)})
	if err := c.Apply(&b); err != nil {
		t.Fatal(err)
	}
	got, _ = c.Elements("t", "m")
	found := false
	for _, e := range got {
		found = found || bytes.Equal(e.Key, key(5)) && bytes.Equal(e.Data, value(77))
	}
	if !found || len(got) != len(many) {
		t.Errorf("replaced element: found %v among %d", found, len(got))
	}
	if _, err := c.Elements("t", "nowhere"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("elements of a set that is not there: %v", err)
	}
	if tables, err := c.Tables(); err != nil || len(tables) != 1 || tables[0] != "t" {
		t.Errorf("tables %v, %v", tables, err)
	}
	g1, _ := c.Generation()
	for range 2 {
		if err := c.DeleteTable("t"); err != nil {
			t.Fatal(err)
		}
	}
	if g2, err := c.Generation(); err != nil || g2 != g1+2 {
		t.Errorf("generation %d, then %d (%v)", g1, g2, err)
	}
	if err := c.Apply(&nft.Batch{}); err != nil {
		t.Errorf("empty batch: %v", err)
	}
}

func TestClosedConnRefuses(t *testing.T) {
	c := open(t)
	c.Close()
	var b nft.Batch
	b.AddTable("t")
	if err := c.Apply(&b); err == nil {
		t.Error("closed connection changed a table")
	}
}

// BenchmarkChange is one element replaced in a map of 30,000.
func BenchmarkChange(b *testing.B) {
	for _, with := range []string{"add", "replace"} {
		b.Run(with, func(b *testing.B) {
			c := open(b)
			var batch nft.Batch
			batch.ReplaceTable("t")
			batch.AddSet("t", services)
			for i := range 30000 {
				batch.Add("t", "m", nft.Element{Key: key(i), Data: value(0)})
			}
			t0 := time.Now()
			if err := c.Apply(&batch); err != nil {
				b.Fatal(err)
			}
			fill := time.Since(t0)
			n := uint32(0)
			for b.Loop() {
				n++
				var x nft.Batch
				if with == "replace" {
					x.Delete("t", "m", nft.Element{Key: key(7)})
					x.Add("t", "m", nft.Element{Key: key(7), Data: value(n)})
				} else {
					x.Add("t", "m", nft.Element{Key: key(100000 + int(n)), Data: value(n)})
				}
				if err := c.Apply(&x); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(fill.Seconds()*1000, "ms/fill")
		})
	}
}
