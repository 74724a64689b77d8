package bridge

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

func TestKeyOf(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1:5":                     "192.0.2.1",
		"[::ffff:192.0.2.1]:5":            "192.0.2.1",
		"[2001:db8:1:2:3:4:5:6]:5":        "2001:db8:1:2::",
		"[2001:db8:1:2:ffff:4:5:6]:5":     "2001:db8:1:2::",
		"[2001:db8:1:3::1]:5":             "2001:db8:1:3::",
		"[fe80::1%eth0]:5":                "fe80::",
		"[fe80::aaaa:bbbb:cccc:dddd%x]:5": "fe80::",
	} {
		at, err := netip.ParseAddrPort(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := keyOf(net.TCPAddrFromAddrPort(at)); got.String() != want {
			t.Errorf("%s counts as %s, want %s", text, got, want)
		}
	}
	if keyOf(&net.UnixAddr{}).IsValid() {
		t.Error("a Unix socket has an IP address")
	}
}

func TestRateOfOneAddress(t *testing.T) {
	table, now := newAddresses(10, 5), time.Now()
	stranger, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	come := func(key netip.Addr, times int) (allowed int) {
		for range times {
			if _, ok := table.arrive(key, now); ok {
				allowed++
			}
		}
		return allowed
	}
	if n := come(stranger, 20); n != 5 {
		t.Errorf("%d of a burst of 20 were let in, want 5", n)
	}
	if n := come(other, 5); n != 5 {
		t.Errorf("%d of another address's 5 were let in", n)
	}
	now = now.Add(300 * time.Millisecond)
	if n := come(stranger, 20); n != 3 {
		t.Errorf("%d after 300 ms at 10 a second, want 3", n)
	}
	now = now.Add(time.Hour)
	if n := come(stranger, 20); n != 5 {
		t.Errorf("%d after an hour, want the burst of 5", n)
	}
}

// TestValidCertificateIsNotLimited opens many connections in a row that each
// show one, and then as many at once from the address that is now known.
func TestValidCertificateIsNotLimited(t *testing.T) {
	table, now := newAddresses(1, 2), time.Now()
	key := netip.MustParseAddr("192.0.2.1")
	for i := range 100 {
		from, ok := table.arrive(key, now)
		if !ok {
			t.Fatalf("connection %d was turned away", i)
		}
		table.welcome(from, now)
	}
	for i := range 100 {
		if _, ok := table.arrive(key, now); !ok {
			t.Fatalf("connection %d at once was turned away", i)
		}
	}
	now = now.Add(knownFor)
	for range 3 {
		table.arrive(key, now)
	}
	if _, ok := table.arrive(key, now); ok {
		t.Error("the address is known for ever")
	}
}

func TestAddressesAreBounded(t *testing.T) {
	table, now := newAddresses(1, 1), time.Now()
	busy, _ := table.arrive(netip.MustParseAddr("192.0.2.1"), now)
	busy.guests = 1
	address := netip.MustParseAddr("10.0.0.0")
	for range 3 * maxAddresses {
		address = address.Next()
		table.arrive(address, now)
	}
	if len(table.byKey) != maxAddresses || table.recent.Len() != maxAddresses {
		t.Errorf("%d addresses, %d in order; want %d", len(table.byKey), table.recent.Len(), maxAddresses)
	}
	if again, _ := table.arrive(busy.key, now); again != busy {
		t.Error("an address with a connection in its handshake was forgotten")
	}
	if again, allowed := table.arrive(address, now); allowed || again.key != address {
		t.Error("the last address was forgotten")
	}
}
