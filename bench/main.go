// Command bench measures the three real programs on loopback against the raw
// token and the bare tunnel, in one run and in short alternating slices, so
// that whatever else happens on the machine hits both sides of each ratio.
//
// It starts itself again as worker processes: one drives the token through
// PKCS#11 without anything of ours, one is the client, one is an echo server
// behind a bridge of its own. See docs/benchmarks/README.md for what the
// figures mean. It runs in the root of the project: `./bootstrap bench`.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == workerArgument:
		err = runWorker(os.Args[2], os.Stdin, os.Stdout)
	case len(os.Args) == 2 && os.Args[1] == custodianArgument:
		err = runCustodian()
	default:
		err = run(os.Args[1:], os.Stdout)
	}
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintln(os.Stderr, "bench:", err)
	os.Exit(1)
}

// sections are the parts of a run, in the order in which they are measured.
var sections = []section{
	{"signatures", "signatures a second, by requests in flight", measureSignatures},
	{"variants", "what each configuration of the server costs", measureVariants},
	{"isolation", "what a process of its own costs a token", measureIsolation},
	{"tpm", "signatures a second with keys in an emulated TPM", measureTPM},
	{"latency", "one request at a time", measureLatency},
	{"connects", "new connections", measureConnects},
	{"memory", "memory by idle legs and by sessions", measureMemory},
}

// section measures one part and adds what it found to the results.
type section struct {
	name    string
	about   string
	measure func(*stage, *Results)
}

// keptIn is where the results that the project shows are.
const keptIn = "docs/benchmarks"

// options are the command line's.
type options struct {
	quick   bool
	only    []string // sections
	keys    []string
	out     string
	profile string
	against []string
}

// profiledKey is P-256, where everything beside the token shows most, unless keys were chosen.
func (o options) profiledKey() string {
	if len(o.keys) == len(algorithms) {
		return "p256"
	}
	return o.keys[0]
}

func parse(args []string, usage io.Writer) (options, error) {
	o := options{only: sectionNames(), keys: algorithms}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(usage)
	flags.BoolVar(&o.quick, "quick", false, "short slices and few of them: to see that all works, not to quote")
	flags.Func("only", "measure only these `sections`, separated by commas: "+strings.Join(sectionNames(), ", "), choice(&o.only))
	flags.Func("keys", "measure only these `keys`, separated by commas: "+strings.Join(algorithms, ", "), choice(&o.keys))
	flags.StringVar(&o.out, "out", "", "`directory` for tables (results.md, results.json) and plots (*.svg); default: "+keptIn+" for a whole run, none for others")
	flags.StringVar(&o.profile, "profile", "", "instead of measuring, sign with P-256, or the first of -keys, and have perf profile the processes into this `directory`")
	flags.Func("against", "compare with the programs in this `directory` too, among the variants; may be repeated", func(dir string) error {
		absolute, err := filepath.Abs(dir)
		o.against = append(o.against, absolute)
		return err
	})
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	whole := !o.quick && len(o.only) == len(sections) && len(o.keys) == len(algorithms)
	if o.out == "" && whole {
		o.out = keptIn
	}
	return o, nil
}

// choice returns a flag's function that narrows a list of names to those given.
func choice(from *[]string) func(string) error {
	return func(given string) error {
		names := strings.Split(given, ",")
		for _, name := range names {
			if !slices.Contains(*from, name) {
				return fmt.Errorf("there is no %q, only %s", name, strings.Join(*from, ", "))
			}
		}
		*from = names
		return nil
	}
}

func sectionNames() []string {
	var names []string
	for _, s := range sections {
		names = append(names, s.name)
	}
	return names
}

func run(args []string, stdout io.Writer) error {
	o, err := parse(args, os.Stderr)
	if err != nil {
		return err
	}
	return onStage(o, func(s *stage) error {
		if o.profile != "" {
			return s.profile(o.profile)
		}
		results := newResults(o)
		for _, section := range sections {
			if !slices.Contains(o.only, section.name) {
				continue
			}
			s.say("measuring %s", section.about)
			section.measure(s, results)
		}
		if o.out != "" {
			if err := results.writeAll(o.out); err != nil {
				return err
			}
		}
		_, err := io.WriteString(stdout, results.Markdown())
		return err
	})
}
