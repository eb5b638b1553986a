package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Elements reads a set of an inet table. Elements that rules have added and
// their timeouts are part of it. The error of a missing table or set wraps
// unix.ENOENT.
func (c *Conn) Elements(table, set string) ([]Element, error) {
	var req Batch
	req.deeds = []string{"read"}
	req.text(unix.NFTA_SET_ELEM_LIST_TABLE, table)
	req.text(unix.NFTA_SET_ELEM_LIST_SET, set)
	var out []Element
	err := c.dump(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETSETELEM, req.out, func(_ uint8, attrs []byte) {
		for typ, list := range attributes(attrs) {
			if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			for _, one := range attributes(list) {
				out = append(out, parseElement(one))
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read nftables set %q of table %q: %w", set, table, err)
	}
	return out, nil
}

func parseElement(b []byte) Element {
	var e Element
	for typ, v := range attributes(b) {
		switch typ {
		case unix.NFTA_SET_ELEM_KEY:
			for t, data := range attributes(v) {
				if t == unix.NFTA_DATA_VALUE {
					e.Key = data
				}
			}
		case elemKeyEnd:
			for t, data := range attributes(v) {
				if t == unix.NFTA_DATA_VALUE {
					e.KeyEnd = data
				}
			}
		case unix.NFTA_SET_ELEM_DATA:
			for t, data := range attributes(v) {
				switch t {
				case unix.NFTA_DATA_VALUE:
					e.Data = data
				case unix.NFTA_DATA_VERDICT:
					e.Verdict = &expr.Verdict{}
					for vt, x := range attributes(data) {
						switch vt {
						case unix.NFTA_VERDICT_CODE:
							e.Verdict.Kind = expr.VerdictKind(int32(binary.BigEndian.Uint32(x)))
						case unix.NFTA_VERDICT_CHAIN:
							e.Verdict.Chain = cString(x)
						}
					}
				}
			}
		}
	}
	return e
}

// HookedChain is a base chain of any table of the host, of any family.
type HookedChain struct {
	Family      uint8 // unix.NFPROTO_…
	Table, Name string
	Type        string
	Hook        uint32
	Priority    int32
	Drops       bool // its policy is drop
}

// Chains lists the chains of every table of the host that hang on a hook.
func (c *Conn) Chains() ([]HookedChain, error) {
	all, err := c.chains()
	if err != nil {
		return nil, err
	}
	var out []HookedChain
	for _, x := range all {
		if x.Type != "" {
			out = append(out, x)
		}
	}
	return out, nil
}

// ChainNames lists all chains of an inet table; none when there is no such table.
func (c *Conn) ChainNames(table string) ([]string, error) {
	all, err := c.chains()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, x := range all {
		if x.Family == unix.NFPROTO_INET && x.Table == table {
			out = append(out, x.Name)
		}
	}
	return out, nil
}

func (c *Conn) chains() ([]HookedChain, error) {
	var out []HookedChain
	for _, family := range []uint8{unix.NFPROTO_INET, unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		err := c.dumpFamily(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETCHAIN, family, func(fam uint8, attrs []byte) {
			x := HookedChain{Family: fam}
			for typ, v := range attributes(attrs) {
				switch typ {
				case unix.NFTA_CHAIN_TABLE:
					x.Table = cString(v)
				case unix.NFTA_CHAIN_NAME:
					x.Name = cString(v)
				case unix.NFTA_CHAIN_TYPE:
					x.Type = cString(v)
				case unix.NFTA_CHAIN_POLICY:
					x.Drops = binary.BigEndian.Uint32(v) == 0
				case unix.NFTA_CHAIN_HOOK:
					for ht, h := range attributes(v) {
						switch ht {
						case unix.NFTA_HOOK_HOOKNUM:
							x.Hook = binary.BigEndian.Uint32(h)
						case unix.NFTA_HOOK_PRIORITY:
							x.Priority = int32(binary.BigEndian.Uint32(h))
						}
					}
				}
			}
			out = append(out, x)
		})
		if err != nil {
			return nil, fmt.Errorf("list nftables chains: %w", err)
		}
	}
	return out, nil
}

// Tables lists the names of the inet tables.
func (c *Conn) Tables() ([]string, error) {
	var out []string
	err := c.dumpFamily(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, unix.NFPROTO_INET, func(_ uint8, attrs []byte) {
		for typ, v := range attributes(attrs) {
			if typ == unix.NFTA_TABLE_NAME {
				out = append(out, cString(v))
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	return out, nil
}

// RuleCount counts the rules of one inet table by chain.
func (c *Conn) RuleCount(table string) (map[string]int, error) {
	var req Batch
	req.deeds = []string{"read"}
	req.text(unix.NFTA_RULE_TABLE, table)
	out := map[string]int{}
	err := c.dump(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETRULE, req.out, func(_ uint8, attrs []byte) {
		for typ, v := range attributes(attrs) {
			if typ == unix.NFTA_RULE_CHAIN {
				out[cString(v)]++
			}
		}
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("count nftables rules of table %q: %w", table, err)
	}
	return out, nil
}

// DeleteTable removes a table if it exists.
func (c *Conn) DeleteTable(table string) error {
	var b Batch
	b.AddTable(table) // so that the removal never fails
	b.DeleteTable(table)
	if err := c.Apply(&b); err != nil {
		return fmt.Errorf("delete nftables table %q: %w", table, err)
	}
	return nil
}

// Generation is a number that grows with each change of any table of the host.
func (c *Conn) Generation() (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return 0, os.ErrClosed
	}
	c.seq++
	out := appendHeader(nil, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, unix.NLM_F_REQUEST, c.seq, unix.AF_UNSPEC, 0)
	if err := unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, fmt.Errorf("read nftables generation: %w", err)
	}
	for {
		n, err := c.receive()
		if err != nil {
			return 0, fmt.Errorf("read nftables generation: %w", err)
		}
		for m := range messages(c.buf[:n]) {
			if m.seq != c.seq || len(m.data) < 4 {
				continue
			}
			if m.typ == unix.NLMSG_ERROR {
				return 0, fmt.Errorf("read nftables generation: %w", unix.Errno(-int32(binary.NativeEndian.Uint32(m.data))))
			}
			for typ, v := range attributes(m.data[4:]) {
				if typ == unix.NFTA_GEN_ID {
					return binary.BigEndian.Uint32(v), nil
				}
			}
		}
	}
}
