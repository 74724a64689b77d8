package main

// connectsAtOnce is how many connections are being opened at any time for a rate.
const connectsAtOnce = 32

// ConnectResult compares new connections with those of the bare tunnel.
type ConnectResult struct {
	Chain, Bare           Times     // one at a time, from dialling to the first answer
	ChainRates, BareRates []float64 // connects a second, 32 at once
	ChainRate, BareRate   float64
	Ratio                 float64
}

func measureConnects(s *stage, r *Results) {
	bare := s.newClient(s.newEchoLab())
	var chainTimes, bareTimes samples
	result := &ConnectResult{}
	for repetition := range s.repetitions + 1 {
		one, oneBare := order{Task: "connect", For: s.slice}, order{Task: "connect echo", For: s.slice}
		many, manyBare := one, oneBare
		many.Parallel, manyBare.Parallel = connectsAtOnce, connectsAtOnce
		chain, echo := s.client.do(one).Samples, bare.do(oneBare).Samples
		chainRate, echoRate := s.client.do(many).rate(), bare.do(manyBare).rate()
		if repetition > 0 {
			chainTimes.add(chain)
			bareTimes.add(echo)
			result.ChainRates = append(result.ChainRates, chainRate)
			result.BareRates = append(result.BareRates, echoRate)
		}
	}
	result.Chain, result.Bare = chainTimes.times(), bareTimes.times()
	result.ChainRate, result.BareRate = median(result.ChainRates), median(result.BareRates)
	result.Ratio = median(ratios(result.ChainRates, result.BareRates))
	r.Connects = result
}
