package signer

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"math/big"
	"slices"
	"sync"
	"time"

	"chancery/audit"
)

// fakeAudit keeps records in memory. Where it fails, it fails as an audit.Log does: everybody
// gets the error, and Err tells it until a record could be kept.
type fakeAudit struct {
	mu      sync.Mutex
	records []audit.Record
	tries   int
	fails   error
	last    error
	gate    chan struct{} // nil, or what each record waits for
	only    audit.Kind    // "", or the kind that waits
}

func (f *fakeAudit) Append(ctx context.Context, records ...audit.Record) (audit.Position, error) {
	f.mu.Lock()
	gate := f.gate
	if f.only != "" && records[0].Kind != f.only {
		gate = nil
	}
	f.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return audit.Position{}, context.Cause(ctx)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tries++
	if f.last = f.fails; f.fails != nil {
		return audit.Position{}, f.fails
	}
	if ctx.Err() != nil {
		return audit.Position{}, context.Cause(ctx)
	}
	f.records = append(f.records, records...)
	return audit.Position{Head: audit.Head{Seq: uint64(len(f.records))}}, nil
}

func (f *fakeAudit) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

// fail makes the log fail from the next record on, or work again with nil.
func (f *fakeAudit) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fails = err
}

func (f *fakeAudit) kept() []audit.Record {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.records)
}

// of returns the records of one kind.
func (f *fakeAudit) of(kind audit.Kind) []audit.Record {
	return slices.DeleteFunc(f.kept(), func(r audit.Record) bool { return r.Kind != kind })
}

func (f *fakeAudit) text() string {
	text, err := json.Marshal(f.kept())
	if err != nil {
		panic(err)
	}
	return string(text)
}

// clientCertificate is what every fake client shows.
var clientCertificate = sync.OnceValue(func() *x509.Certificate {
	key := privateKeys()["p256"]
	template := &x509.Certificate{
		SerialNumber: big.NewInt(0x1af), Subject: pkix.Name{CommonName: "alice"},
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return certificate
})

// change alters the log under its lock.
func (f *fakeAudit) change(how func(*fakeAudit)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	how(f)
}
