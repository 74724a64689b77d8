package main

import "chancery/e2e/lab"

// variant is one configuration of the server whose price is measured: what it
// adds to the environment of the programs.
type variant struct {
	name          string
	configuration []string
}

// variants are compared with each other, slice by slice. The first is the one
// that all other sections measure.
var variants = []variant{
	{name: "as installed"},
	{name: "records not made durable", configuration: []string{"CHANCERY_SERVER_AUDIT_UNSAFE_NO_SYNC=true"}},
}

// VariantResult is how one configuration fares beside the first.
type VariantResult struct {
	Variant   string
	Algorithm string
	Figure    Figure // 64 in flight; Ratio is to the first variant
}

// measureVariants runs all variants at once, each with bridge, server and token
// of its own, and lets them take turns; those whose turn it isn't are idle.
func measureVariants(s *stage, r *Results) {
	if len(variants) < 2 {
		return
	}
	chains, clients := []*lab.Lab{s.chain}, []*worker{s.client}
	for _, v := range variants[1:] {
		chain := s.newChain(v.configuration)
		chains, clients = append(chains, chain), append(clients, s.newClient(chain))
	}
	for _, algorithm := range algorithms {
		o := order{Task: "rate", Key: algorithm, Parallel: 64, For: s.slice}
		slices := make([][]float64, len(variants))
		for repetition := range s.repetitions + 1 {
			for i := range variants {
				rate := clients[i].do(o).rate()
				if repetition > 0 {
					slices[i] = append(slices[i], rate)
				}
			}
		}
		for i, v := range variants {
			shares := ratios(slices[i], slices[0])
			r.Variants = append(r.Variants, VariantResult{Variant: v.name, Algorithm: algorithm,
				Figure: Figure{Load: "64 in flight", Slices: slices[i], Median: median(slices[i]), Ratios: shares, Ratio: median(shares)}})
		}
	}
}
