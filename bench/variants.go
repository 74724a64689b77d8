package main

import "chancery/e2e/lab"

// variant is one way to run the chain whose price is measured.
type variant struct {
	name          string
	configuration []string // added to the environment of the programs
	programs      string   // the directory of other programs than those built here
}

// asInstalled is what all other sections measure.
const asInstalled = "as installed"

// notDurable shows what waiting for the disk costs.
const notDurable = "records not made durable"

// notVerified shows what verifying each signature costs.
const notVerified = "signatures not verified"

// variants are compared with each other, slice by slice. The first is asInstalled.
func variants(o options) []variant {
	all := []variant{
		{name: asInstalled},
		{name: notDurable, configuration: []string{"CHANCERY_SERVER_AUDIT_UNSAFE_NO_SYNC=true"}},
		{name: notVerified, configuration: []string{"CHANCERY_SERVER_TOKENS_UNSAFE_UNVERIFIED=true"}},
	}
	for _, dir := range o.against {
		all = append(all, variant{name: "programs of " + dir, programs: dir})
	}
	return all
}

// VariantResult is how one configuration fares beside the first.
type VariantResult struct {
	Variant   string
	Algorithm string
	Figure    Figure // Ratio is to the first variant
}

// variantLoads are those under which variants are compared.
var variantLoads = []load{
	{"64 in flight", order{Task: "rate", Parallel: 64}},
	{"4 batches of 100", order{Task: "rate", Parallel: 4, Batch: 100}},
	{"1 in flight", order{Task: "rate", Parallel: 1}},
}

// measureVariants runs all variants at once, each with bridge, server and token
// of its own, and lets them take turns; those whose turn it isn't are idle.
func measureVariants(s *stage, r *Results) {
	all := variants(s.options)
	clients, chains := []*worker{s.client}, []*lab.Lab{s.chain}
	for _, v := range all[1:] {
		chain := s.newChain(v)
		chains, clients = append(chains, chain), append(clients, s.newClient(chain))
	}
	for _, algorithm := range s.options.keys {
		for _, l := range variantLoads {
			o := l.order
			o.Key, o.For = algorithm, s.sliceOf(algorithm)
			slices, cpu := make([][]float64, len(all)), make([]usage, len(all))
			for repetition := range s.repetitions + 1 {
				for i := range all {
					a, used := s.watched(clients[i], o, chainProcesses(chains[i], clients[i]))
					if repetition > 0 {
						slices[i] = append(slices[i], a.rate())
						cpu[i].add(used)
					}
				}
			}
			for i, v := range all {
				shares := ratios(slices[i], slices[0])
				r.Variants = append(r.Variants, VariantResult{Variant: v.name, Algorithm: algorithm,
					Figure: Figure{Load: l.Name, Slices: slices[i], Median: median(slices[i]), Ratios: shares, Ratio: median(shares), CPU: cpu[i].each()}})
			}
		}
	}
}
