package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"

	"chancery/access"
	"chancery/token"
	"chancery/token/pkcs11"
	custodian "chancery/token/worker"
	"chancery/users"
)

// custodianArgument makes this program the far end of a custodian.Process: `bench custodian`.
const custodianArgument = "custodian"

// custodySettings say which token a custody worker keeps, and whether in a process of its own.
type custodySettings struct {
	rawSettings
	Isolated bool
}

// custody signs through what the server keeps a token in.
type custody struct {
	handler custodian.Handler
	keys    map[string]grip
	holder  custodian.Holder
}

// grip is one key that was unlocked.
type grip struct {
	capability custodian.Capability
	id         []byte
	options    crypto.SignerOpts
}

func newCustody(ctx context.Context, settings *json.Decoder) (tasks, error) {
	var s custodySettings
	if err := settings.Decode(&s); err != nil {
		return nil, err
	}
	handler, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	c := &custody{handler: handler, keys: make(map[string]grip), holder: custodian.Holder{User: 1}}
	if err := c.unlockAll(ctx, []byte(s.PIN)); err != nil {
		return nil, err
	}
	return tasks{"rate": c.rate, "pid": c.pid}, nil
}

func (s custodySettings) open(ctx context.Context) (custodian.Handler, error) {
	if !s.Isolated {
		open, err := s.token()
		if err != nil {
			return nil, err
		}
		return custodian.NewVault(open, slog.New(slog.DiscardHandler)), nil
	}
	specification, err := json.Marshal(s.rawSettings)
	if err != nil {
		return nil, err
	}
	process, err := custodian.Start(ctx, custodian.Config{Args: []string{custodianArgument}, Specification: specification})
	if err != nil {
		return nil, err
	}
	return process, nil
}

func (s rawSettings) token() (token.Token, error) {
	return pkcs11.Open(pkcs11.Config{Module: s.Module, Serial: s.Serial})
}

// runCustodian keeps the token for the worker that started this process.
func runCustodian() error {
	file := os.NewFile(custodian.LinkFD, "link")
	link, err := net.FileConn(file)
	file.Close()
	if err != nil {
		return err
	}
	return custodian.Serve(link, func(_ context.Context, specification []byte, _ *slog.Logger) (token.Token, error) {
		var s rawSettings
		if err := json.Unmarshal(specification, &s); err != nil {
			return nil, err
		}
		return s.token()
	}, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})))
}

// unlockAll makes a grant for each key, as the store would have one, and unlocks it.
func (c *custody) unlockAll(ctx context.Context, pin []byte) error {
	passphrase := access.GeneratePassphrase()
	key, err := access.DeriveKey(passphrase, access.NewParameters())
	if err != nil {
		return err
	}
	info, err := c.handler.Info(ctx)
	if err != nil {
		return err
	}
	keys, err := c.handler.Keys(ctx)
	if err != nil {
		return err
	}
	binding := access.Binding{TokenSerial: info.Serial, User: "bench"}
	wrapped, err := access.Wrap(pin, key.Public(), binding)
	if err != nil {
		return err
	}
	for _, found := range keys {
		public, err := x509.MarshalPKIXPublicKey(found.Public)
		if err != nil {
			return err
		}
		record := users.Token{ID: 1, Name: "bench", Serial: info.Serial}
		capability, err := c.handler.Unlock(ctx, custodian.Unlock{
			Holder: c.holder, Passphrase: passphrase, Token: record,
			Key:   custodian.Key{Name: found.Label, ID: found.ID, Public: public},
			Grant: custodian.Grant{Parameters: key.Public().Parameters, Wrapped: wrapped, Binding: binding},
		}, ledger{record})
		if err != nil {
			return fmt.Errorf("unlock %s: %w", found.Label, err)
		}
		c.keys[found.Label] = grip{capability, found.ID, optionsOf(found.Algorithm)}
	}
	return nil
}

func optionsOf(a token.Algorithm) crypto.SignerOpts {
	if a == token.Ed25519 {
		return crypto.Hash(0)
	}
	return documentHash
}

// ledger is a store in which nothing ever happens to the PIN.
type ledger struct{ record users.Token }

func (l ledger) Snapshot(context.Context) (*users.Snapshot, error) {
	return users.NewSnapshot(0, nil, []users.Token{l.record}, nil, nil), nil
}
func (ledger) CommitPIN(context.Context, int64, int64) error       { return nil }
func (ledger) RejectPIN(context.Context, int64, int64, bool) error { return nil }
func (ledger) Derived()                                            {}

func (c *custody) rate(ctx context.Context, o order) (answer, error) {
	key, known := c.keys[o.Key]
	if !known {
		return answer{}, fmt.Errorf("no key %q", o.Key)
	}
	return until(ctx, o.Parallel, o.For, func(ctx context.Context, _ int) error {
		input := make([]byte, documentHash.Size())
		rand.Read(input)
		_, err := c.handler.Sign(ctx, custodian.Order{
			Holder: c.holder, Capability: key.capability, KeyID: key.id, Inputs: [][]byte{input}, Options: key.options,
		})
		return err
	})
}

// pid answers with the number of the token's own process, or 0.
func (c *custody) pid(context.Context, order) (answer, error) {
	if process, isolated := c.handler.(*custodian.Process); isolated {
		return answer{Count: process.PID()}, nil
	}
	return answer{}, nil
}

// IsolationResult is what a process of its own costs a token, for one key and load.
type IsolationResult struct {
	Algorithm, Load string
	InProcess       Figure
	Isolated        Figure // Ratio is to InProcess
}

// isolated are the keys for which isolation is measured, and how many calls are in flight.
var (
	isolatedKeys  = []string{"p256", "rsa2048"}
	isolatedLoads = []load{
		{"1 in flight", order{Task: "rate", Parallel: 1}},
		{"8 in flight", order{Task: "rate", Parallel: 8}},
		{"64 in flight", order{Task: "rate", Parallel: 64}},
	}
)

// measureIsolation takes turns between the token in one process with its caller and the token in another. Both
// verify each signature.
func measureIsolation(s *stage, r *Results) {
	settings := rawSettings{Module: s.chain.HSM.Store.Module, Serial: s.chain.HSM.Serial, PIN: string(s.chain.HSM.PIN)}
	beside := startWorker(s, "custody", s.chain.Environment, custodySettings{settings, false})
	apart := startWorker(s, "custody", s.chain.Environment, custodySettings{settings, true})
	own := apart.do(order{Task: "pid"}).Count
	for _, key := range isolatedKeys {
		for _, l := range isolatedLoads {
			result := IsolationResult{Algorithm: key, Load: l.Name, InProcess: Figure{Load: l.Name}, Isolated: Figure{Load: l.Name}}
			o := l.order
			o.Key, o.For = key, s.slice
			var besideCPU, apartCPU usage
			for repetition := range s.repetitions + 1 {
				a, usedA := s.watched(beside, o, map[string]int{"caller": beside.pid})
				b, usedB := s.watched(apart, o, map[string]int{"caller": apart.pid, "token": own})
				if repetition == 0 {
					continue
				}
				result.InProcess.Slices, result.Isolated.Slices = append(result.InProcess.Slices, a.rate()), append(result.Isolated.Slices, b.rate())
				besideCPU.add(usedA)
				apartCPU.add(usedB)
			}
			result.InProcess.Median, result.Isolated.Median = median(result.InProcess.Slices), median(result.Isolated.Slices)
			result.Isolated.Ratios = ratios(result.Isolated.Slices, result.InProcess.Slices)
			result.Isolated.Ratio = median(result.Isolated.Ratios)
			result.InProcess.CPU, result.Isolated.CPU = besideCPU.each(), apartCPU.each()
			r.Isolation = append(r.Isolation, result)
		}
	}
}

// cpuTogether is the processor time of all processes of a figure for one signature, in microseconds.
func cpuTogether(f Figure) (sum float64) {
	for _, used := range f.CPU {
		sum += used
	}
	return sum
}

func isolationRows(results []IsolationResult) [][]string {
	var rows [][]string
	for _, i := range results {
		rows = append(rows, []string{
			titles[i.Algorithm], i.Load,
			fmt.Sprintf("%.0f", i.InProcess.Median), spread(i.InProcess.Slices, "%.0f"), fmt.Sprintf("%.0f", i.Isolated.Median), spread(i.Isolated.Slices, "%.0f"),
			fmt.Sprintf("**%.2f**", i.Isolated.Ratio),
			cost(i.InProcess, "caller"), cost(i.Isolated, "caller"), cost(i.Isolated, "token"),
			fmt.Sprintf("%.2f", cpuTogether(i.InProcess)/cpuTogether(i.Isolated)),
		})
	}
	return rows
}
