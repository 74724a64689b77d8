package main

import (
	"fmt"
	"strings"
)

// Markdown returns all tables.
func (r *Results) Markdown() string {
	var b strings.Builder
	m := r.Machine
	fmt.Fprintf(&b, "# Results\n\n%s, %s, %d cores, %s, %s.\n", m.Date, m.CPU, m.Cores, m.Kernel, m.Go)
	if m.Quick {
		b.WriteString("\n**Made with -quick: these figures show that the benchmark works and nothing else.**\n")
	}
	r.targets(&b)
	r.signatureTables(&b)
	r.variantTable(&b)
	r.isolationTable(&b)
	r.tpmTable(&b)
	r.latencyTable(&b)
	r.connectTable(&b)
	r.memoryTable(&b)
	return b.String()
}

// table writes one Markdown table.
func table(b *strings.Builder, title string, head []string, rows [][]string) {
	fmt.Fprintf(b, "\n## %s\n\n| %s |\n|%s\n", title, strings.Join(head, " | "), strings.Repeat("---|", len(head)))
	for _, row := range rows {
		fmt.Fprintf(b, "| %s |\n", strings.Join(row, " | "))
	}
}

// target is a ratio that is wanted of a figure.
type target struct {
	what    string
	got     float64
	want    float64
	atLeast bool
}

func (t target) row() []string {
	sign, met := "≥", t.got >= t.want
	if !t.atLeast {
		sign, met = "≤", t.got <= t.want
	}
	verdict := "yes"
	if !met {
		verdict = "**no**"
	}
	return []string{t.what, fmt.Sprintf("%s %.2f", sign, t.want), fmt.Sprintf("%.2f", t.got), verdict}
}

func (r *Results) targets(b *strings.Builder) {
	var targets []target
	wanted := map[string][]target{
		"rsa4096": {{what: "64 in flight", want: 0.97}},
		"rsa2048": {{what: "64 in flight", want: 0.93}},
		"p256":    {{what: "64 in flight", want: 0.60}, {what: "4 batches of 100", want: 0.90}},
	}
	for i := range r.Signatures {
		a := &r.Signatures[i]
		for _, t := range wanted[a.Algorithm] {
			targets = append(targets, target{titles[a.Algorithm] + ", " + t.what + ", of raw", a.figure(t.what).Ratio, t.want, true})
		}
	}
	if r.Latency != nil {
		for _, request := range r.Latency.Requests {
			one := titles[request.Algorithm] + ", one request, of echo + fdatasync + raw, "
			targets = append(targets, target{one + "each by itself", request.Ratio, 1.3, false}, target{one + "in turn", request.OfParts, 1.3, false})
		}
	}
	if r.Connects != nil {
		targets = append(targets, target{"connects, of the bare tunnel", r.Connects.Ratio, 0.7, true})
	}
	for _, i := range r.Isolation {
		if want := map[string]float64{"p256": 0.8, "rsa2048": 0.97}[i.Algorithm]; i.Load == "64 in flight" {
			targets = append(targets, target{titles[i.Algorithm] + ", 64 in flight, in a process of its own, of in one process", i.Isolated.Ratio, want, true})
		}
	}
	for _, v := range r.Variants {
		if v.Variant == notDurable && v.Figure.Load == "64 in flight" {
			targets = append(targets, target{titles[v.Algorithm] + ", 64 in flight, price of durable records", 1 - 1/v.Figure.Ratio, 0.1, false})
		}
	}
	var rows [][]string
	for _, t := range targets {
		rows = append(rows, t.row())
	}
	if len(rows) > 0 {
		table(b, "What was to be reached", []string{"ratio", "wanted", "measured", "reached"}, rows)
	}
}

func (r *Results) signatureTables(b *strings.Builder) {
	for i := range r.Signatures {
		a := &r.Signatures[i]
		var rows [][]string
		for _, f := range a.Raw {
			rows = append(rows, []string{"raw token, " + f.Load, fmt.Sprintf("%.0f", f.Median), spread(f.Slices, "%.0f"), "", cost(f, "raw"), "", "", "", ""})
		}
		for _, f := range a.Chain {
			rows = append(rows, []string{f.Load, fmt.Sprintf("%.0f", f.Median), spread(f.Slices, "%.0f"), fmt.Sprintf("**%.2f**", f.Ratio),
				"", cost(f, "client"), cost(f, "bridge"), cost(f, "server"), cost(f, "token")})
		}
		table(b, titles[a.Algorithm]+": signatures a second",
			[]string{"load", "median", "quartiles", "of raw, " + a.BestRaw, "CPU µs each: token alone", "client", "bridge", "server", "token's process"}, rows)
	}
}

func cost(f Figure, process string) string { return fmt.Sprintf("%.0f", f.CPU[process]) }

func (r *Results) variantTable(b *strings.Builder) {
	var rows [][]string
	for _, v := range r.Variants {
		rows = append(rows, []string{titles[v.Algorithm], v.Figure.Load, v.Variant, fmt.Sprintf("%.0f", v.Figure.Median), spread(v.Figure.Slices, "%.0f"), fmt.Sprintf("%.2f", v.Figure.Ratio),
			cost(v.Figure, "client"), cost(v.Figure, "bridge"), cost(v.Figure, "server"), cost(v.Figure, "token")})
	}
	if len(rows) > 0 {
		table(b, "Signatures a second by configuration", []string{"key", "load", "configuration", "median", "quartiles", "of " + asInstalled, "CPU µs each: client", "bridge", "server", "token's process"}, rows)
	}
}

func (r *Results) isolationTable(b *strings.Builder) {
	if rows := isolationRows(r.Isolation); len(rows) > 0 {
		table(b, "A token in a process of its own: signatures a second", []string{"key", "load", "in one process", "quartiles", "in its own", "quartiles", "ratio",
			"CPU µs each: one process", "caller", "token's own", "ratio of all CPU"}, rows)
	}
}

func (r *Results) tpmTable(b *strings.Builder) {
	if rows := tpmRows(r.TPM); len(rows) > 0 {
		table(b, "Keys in an emulated TPM: signatures a second", []string{"key", "load", "median", "quartiles", "of raw"}, rows)
	}
}

func (r *Results) latencyTable(b *strings.Builder) {
	if r.Latency == nil {
		return
	}
	row := func(what string, t Times, ratios ...string) []string {
		row := []string{what, fmt.Sprintf("%.0f", t.P50), fmt.Sprintf("%.0f", t.P99), "", "", ""}
		copy(row[3:], ratios)
		return row
	}
	rows := [][]string{
		row("echo of 300 bytes through the bare tunnel", r.Latency.Echo),
		row("fdatasync of 300 bytes", r.Latency.Fsync),
	}
	for _, request := range r.Latency.Requests {
		rows = append(rows,
			row("raw signature, "+titles[request.Algorithm], request.Raw),
			row("echo, raw signature and fdatasync in turn, "+titles[request.Algorithm], request.Parts),
			row("request to sign, "+titles[request.Algorithm], request.Chain,
				fmt.Sprintf("**%.2f**", request.Ratio), fmt.Sprintf("%.2f", request.WithoutFsync), fmt.Sprintf("**%.2f**", request.OfParts)))
	}
	table(b, "One thing at a time, in µs", []string{"what", "p50", "p99", "of echo + fdatasync + raw", "of echo + raw", "of the three in turn"}, rows)
}

func (r *Results) connectTable(b *strings.Builder) {
	c := r.Connects
	if c == nil {
		return
	}
	table(b, "New connections, until the first answer", []string{"to", "p50, ms", "p99, ms", fmt.Sprintf("a second, %d at once", connectsAtOnce), "quartiles", "ratio"}, [][]string{
		{"the server", milli(c.Chain.P50), milli(c.Chain.P99), fmt.Sprintf("%.0f", c.ChainRate), spread(c.ChainRates, "%.0f"), fmt.Sprintf("**%.2f**", c.Ratio)},
		{"an echo server (the bare tunnel)", milli(c.Bare.P50), milli(c.Bare.P99), fmt.Sprintf("%.0f", c.BareRate), spread(c.BareRates, "%.0f"), ""},
	})
}

func milli(micros float64) string { return fmt.Sprintf("%.2f", micros/1000) }

func (r *Results) memoryTable(b *strings.Builder) {
	if len(r.Memory) == 0 {
		return
	}
	mib := func(kib int) string { return fmt.Sprintf("%.1f", float64(kib)/1024) }
	base := r.Memory[0]
	var rows [][]string
	for _, m := range r.Memory {
		each := []string{"", ""}
		if n := m.Legs - base.Legs + m.Sessions; n >= 100 {
			each = []string{fmt.Sprintf("%.0f", float64(m.BridgePSS-base.BridgePSS)/float64(n)), fmt.Sprintf("%.0f", float64(m.ServerPSS-base.ServerPSS)/float64(n))}
		}
		rows = append(rows, append([]string{fmt.Sprint(m.Legs), fmt.Sprint(m.Sessions),
			mib(m.BridgeRSS), mib(m.BridgePSS), mib(m.ServerRSS), mib(m.ServerPSS)}, each...))
	}
	table(b, "Memory", []string{"idle legs", "idle sessions", "bridge RSS, MiB", "PSS", "server RSS, MiB", "PSS", "bridge, KiB each", "server, KiB each"}, rows)
}
