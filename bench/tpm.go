package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"chancery/e2e/lab"
)

// tpmSettings tell a TPM worker where the emulator listens.
type tpmSettings struct{ Socket string }

// rawTPM signs with keys that stay loaded, with an empty password and nothing of ours between.
type rawTPM struct {
	tpm  transport.TPM
	keys map[string]tpm2.NamedHandle
}

// tpmTemplates make signing keys right in the owner hierarchy.
var tpmTemplates = map[string]tpm2.TPMTPublic{
	"p256":    signingTemplate(tpm2.TPMAlgECC, tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256})),
	"rsa2048": signingTemplate(tpm2.TPMAlgRSA, tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048})),
}

func signingTemplate(kind tpm2.TPMAlgID, parameters tpm2.TPMUPublicParms) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: kind, NameAlg: tpm2.TPMAlgSHA256, Parameters: parameters,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true},
	}
}

// tpmSchemes say how each key signs.
var tpmSchemes = map[string]tpm2.TPMTSigScheme{
	"p256":    {Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
	"rsa2048": {Scheme: tpm2.TPMAlgRSASSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
}

func newRawTPM(_ context.Context, settings *json.Decoder) (tasks, error) {
	var s tpmSettings
	if err := settings.Decode(&s); err != nil {
		return nil, err
	}
	conn, err := net.Dial("unix", s.Socket)
	if err != nil {
		return nil, err
	}
	r := &rawTPM{tpm: transport.FromReadWriteCloser(conn), keys: make(map[string]tpm2.NamedHandle)}
	for name, template := range tpmTemplates {
		made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(template)}.Execute(r.tpm)
		if err != nil {
			return nil, fmt.Errorf("make a %s key: %w", name, err)
		}
		r.keys[name] = tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}
	}
	return tasks{"rate": r.rate}, nil
}

func (r *rawTPM) rate(ctx context.Context, o order) (answer, error) {
	key, known := r.keys[o.Key]
	if !known {
		return answer{}, fmt.Errorf("no key %q", o.Key)
	}
	sign := tpm2.Sign{
		KeyHandle: tpm2.AuthHandle{Handle: key.Handle, Name: key.Name, Auth: tpm2.PasswordAuth(nil)},
		Digest:    tpm2.TPM2BDigest{Buffer: document(0)}, InScheme: tpmSchemes[o.Key],
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}
	return until(ctx, 1, o.For, func(context.Context, int) error {
		_, err := sign.Execute(r.tpm)
		return err
	})
}

// startsWithin is how long a new TPM may take to listen.
const startsWithin = 10 * time.Second

// TPMResult is how fast keys in an emulated TPM sign.
type TPMResult struct {
	Algorithm string
	Raw       Figure
	Chain     []Figure // Ratio is to Raw
}

var tpmLoads = []load{
	{"1 in flight", order{Task: "rate", Parallel: 1}},
	{"8 in flight", order{Task: "rate", Parallel: 8}},
	{"batches of 100", order{Task: "rate", Parallel: 1, Batch: 100}},
}

// measureTPM takes turns between one swtpm that is driven directly and another behind all three programs.
func measureTPM(s *stage, r *Results) {
	var raw *worker
	s.asUnit(func() { raw = startWorker(s, "tpm", nil, tpmSettings{s.startTPM()}) })
	chain := s.newTPMChain(s.startTPM())
	client := s.newClient(chain)
	for algorithm := range tpmTemplates {
		result := TPMResult{Algorithm: algorithm, Raw: Figure{Load: "raw"}, Chain: figures(tpmLoads)}
		for repetition := range s.repetitions + 1 {
			a := raw.do(order{Task: "rate", Key: algorithm, For: s.slice})
			for i, l := range tpmLoads {
				o := l.order
				o.Key, o.For = algorithm, s.slice
				if c := client.do(o); repetition > 0 {
					result.Chain[i].Slices = append(result.Chain[i].Slices, c.rate())
				}
			}
			if repetition > 0 {
				result.Raw.Slices = append(result.Raw.Slices, a.rate())
			}
		}
		result.Raw.Median = median(result.Raw.Slices)
		for i := range result.Chain {
			f := &result.Chain[i]
			f.Median, f.Ratios = median(f.Slices), ratios(f.Slices, result.Raw.Slices)
			f.Ratio = median(f.Ratios)
		}
		r.TPM = append(r.TPM, result)
	}
}

// newTPMChain starts bridge and server with keys inside the TPM behind a socket.
func (s *stage) newTPMChain(socket string) *lab.Lab {
	var l *lab.Lab
	s.asUnit(func() {
		l = lab.New(s, s.programs, lab.Driver{
			Name: "tpm", Environment: append([]string{"CHANCERY_SERVER_TOKENS_TPM=unix:" + socket}, everyLab...),
			Add: func(l *lab.Lab) {
				l.Operator("token", "add", "vault", "--driver", "tpm", "--create", "--pin-file", "pin", "--manager", "olga", "--passphrase-file", "olga.passphrase")
			},
		})
		for algorithm := range tpmTemplates {
			l.CreateKey(algorithm, algorithm)
		}
		l.Serve()
	})
	return l
}

// startTPM starts a new emulated TPM and returns the path of its socket.
func (s *stage) startTPM() string {
	dir := s.TempDir()
	socket := filepath.Join(dir, "tpm.sock")
	command := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir, "--server", "type=unixio,path="+socket,
		"--ctrl", "type=unixio,path="+socket+".ctrl", "--flags", "not-need-init,startup-clear")
	command.Stderr = os.Stderr
	s.must(command.Start())
	s.Cleanup(func() {
		command.Process.Kill()
		command.Wait()
	})
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			return socket
		}
		if time.Since(begin) > startsWithin {
			s.Fatal("swtpm does not listen")
		}
	}
}

func tpmRows(results []TPMResult) [][]string {
	var rows [][]string
	for _, t := range results {
		rows = append(rows, []string{titles[t.Algorithm], "raw swtpm", fmt.Sprintf("%.0f", t.Raw.Median), spread(t.Raw.Slices, "%.0f"), ""})
		for _, f := range t.Chain {
			rows = append(rows, []string{titles[t.Algorithm], f.Load, fmt.Sprintf("%.0f", f.Median), spread(f.Slices, "%.0f"), fmt.Sprintf("**%.2f**", f.Ratio)})
		}
	}
	return rows
}
