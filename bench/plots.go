package main

import (
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Colours that stay apart in print and for the colour-blind.
var (
	blue   = color.RGBA{0x1f, 0x6f, 0xb4, 0xff}
	orange = color.RGBA{0xe0, 0x7b, 0x1a, 0xff}
	green  = color.RGBA{0x2a, 0x8c, 0x5a, 0xff}
	purple = color.RGBA{0x7a, 0x52, 0xa3, 0xff}
	black  = color.RGBA{0x22, 0x22, 0x22, 0xff}
	grey   = color.RGBA{0xd8, 0xd8, 0xd8, 0xff}
)

// plotAll draws what was measured.
func (r *Results) plotAll(dir string) error {
	for _, p := range []struct {
		file string
		has  bool
		draw func(path string) error
	}{
		{"signatures.svg", len(r.Signatures) > 0, r.plotSignatures},
		{"ratios.svg", len(r.Signatures) > 0, r.plotRatios},
		{"latency.svg", r.Latency != nil, r.plotLatency},
		{"memory.svg", len(r.Memory) > 0, r.plotMemory},
	} {
		if !p.has {
			continue
		}
		if err := p.draw(filepath.Join(dir, p.file)); err != nil {
			return fmt.Errorf("%s: %w", p.file, err)
		}
	}
	return nil
}

// newPlot returns an empty plot in the common style.
func newPlot(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Title.Padding = vg.Points(6)
	p.BackgroundColor = color.White
	p.Legend.Padding = vg.Points(2)
	p.Legend.ThumbnailWidth = vg.Points(22)
	return p
}

// save writes one row or several of plots into one picture of the given size.
func save(path string, width, height vg.Length, plots [][]*plot.Plot) error {
	canvas := vgsvg.New(width, height)
	whole := draw.New(canvas)
	tiles := draw.Tiles{
		Rows: len(plots), Cols: len(plots[0]), PadX: vg.Points(18), PadY: vg.Points(14),
		PadTop: vg.Points(6), PadBottom: vg.Points(4), PadLeft: vg.Points(4), PadRight: vg.Points(10),
	}
	aligned := plot.Align(plots, tiles, whole)
	for i := range plots {
		for j, p := range plots[i] {
			p.Draw(aligned[i][j])
		}
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := canvas.WriteTo(file); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}

// inFlight are the loads that lie on one axis.
var inFlight = []int{1, 8, 64}

// plotSignatures has a panel for each algorithm: rates by requests in flight, the raw token as a line across.
func (r *Results) plotSignatures(path string) error {
	panels := [][]*plot.Plot{{}}
	for i := range r.Signatures {
		if len(panels[len(panels)-1]) == 2 {
			panels = append(panels, nil)
		}
		p, err := signaturePanel(&r.Signatures[i], i == 0)
		if err != nil {
			return err
		}
		last := len(panels) - 1
		panels[last] = append(panels[last], p)
	}
	return save(path, 9*vg.Inch, vg.Length(3.4*float64(len(panels)))*vg.Inch, panels)
}

func signaturePanel(a *AlgorithmResult, legend bool) (*plot.Plot, error) {
	p := newPlot(titles[a.Algorithm], "requests in flight on one connection", "signatures a second")
	raw := a.bestRaw().Median
	series := []struct {
		name, prefix string
		colour       color.Color
	}{
		{"through the chain", "", blue},
		{"the same, client library verifying", "library, ", orange},
	}
	top := raw
	for _, s := range series {
		points := make(plotter.XYs, len(inFlight))
		for i, n := range inFlight {
			points[i] = plotter.XY{X: float64(i), Y: a.figure(fmt.Sprintf("%s%d in flight", s.prefix, n)).Median}
			top = math.Max(top, points[i].Y)
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return nil, err
		}
		line.Color, line.Width = s.colour, vg.Points(1.8)
		dots.Color, dots.Shape, dots.Radius = s.colour, draw.CircleGlyph{}, vg.Points(3)
		p.Add(line, dots)
		p.Legend.Add(s.name, line, dots)
	}
	for _, across := range []struct {
		name   string
		value  float64
		colour color.Color
		dashes []vg.Length
	}{
		{"raw token, at its best", raw, black, []vg.Length{vg.Points(5), vg.Points(3)}},
		{"4 batches of 100 in flight", a.figure("4 batches of 100").Median, green, []vg.Length{vg.Points(1.5), vg.Points(2.5)}},
	} {
		line, err := plotter.NewLine(plotter.XYs{{X: -0.3, Y: across.value}, {X: float64(len(inFlight)) - 0.7, Y: across.value}})
		if err != nil {
			return nil, err
		}
		line.Color, line.Width, line.Dashes = across.colour, vg.Points(1.6), across.dashes
		p.Add(line)
		p.Legend.Add(across.name, line)
		top = math.Max(top, across.value)
	}
	names := make([]string, len(inFlight))
	for i, n := range inFlight {
		names[i] = fmt.Sprint(n)
	}
	p.NominalX(names...)
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = -0.3, float64(len(inFlight))-0.7, 0, top*1.08
	p.Y.Tick.Marker = thousands{}
	if !legend {
		p.Legend = plot.NewLegend()
	}
	p.Legend.Top, p.Legend.Left = false, false
	p.Legend.XOffs, p.Legend.YOffs = vg.Points(-4), vg.Points(6)
	return p, nil
}

// thousands labels ticks with whole numbers that people can read.
type thousands struct{}

func (thousands) Ticks(low, high float64) []plot.Tick {
	ticks := plot.DefaultTicks{}.Ticks(low, high)
	for i := range ticks {
		if ticks[i].Label == "" {
			continue
		}
		ticks[i].Label = fmt.Sprintf("%.0f", ticks[i].Value)
		if ticks[i].Value >= 1000 {
			ticks[i].Label = fmt.Sprintf("%d,%03d", int(ticks[i].Value)/1000, int(ticks[i].Value)%1000)
		}
	}
	return ticks
}

// ratioLoads are the groups of bars, with shorter names.
var ratioLoads = []struct {
	load, name string
	colour     color.Color
}{
	{"1 in flight", "1 in flight", grey},
	{"8 in flight", "8 in flight", orange},
	{"64 in flight", "64 in flight", blue},
	{"32 connections", "32 connections", purple},
	{"4 batches of 100", "4 batches of 100", green},
}

// plotRatios draws how much of the raw token's rate arrives at the client.
func (r *Results) plotRatios(path string) error {
	p := newPlot("Part of the raw token's rate that arrives at the client", "", "ratio to the raw token at its best")
	const width = 15
	for i, l := range ratioLoads {
		values := make(plotter.Values, len(r.Signatures))
		for j := range r.Signatures {
			values[j] = r.Signatures[j].figure(l.load).Ratio
		}
		bars, err := plotter.NewBarChart(values, vg.Points(width))
		if err != nil {
			return err
		}
		bars.Color, bars.LineStyle.Width = l.colour, vg.Points(0.4)
		bars.Offset = vg.Points((float64(i) - float64(len(ratioLoads)-1)/2) * (width + 1.5))
		p.Add(bars)
		p.Legend.Add(l.name, bars)
	}
	one, err := plotter.NewLine(plotter.XYs{{X: -0.5, Y: 1}, {X: float64(len(r.Signatures)) - 0.5, Y: 1}})
	if err != nil {
		return err
	}
	one.Color, one.Dashes = black, []vg.Length{vg.Points(5), vg.Points(3)}
	p.Add(one)
	var names []string
	for i := range r.Signatures {
		names = append(names, titles[r.Signatures[i].Algorithm])
	}
	p.NominalX(names...)
	p.X.Min, p.X.Max, p.Y.Min = -0.5, float64(len(names))-0.5, 0
	p.Y.Max = math.Max(p.Y.Max, 1) * 1.42 // room for the legend above the bars
	p.Legend.Top, p.Legend.Left = true, true
	p.Legend.XOffs = vg.Points(6)
	return save(path, 8*vg.Inch, 4*vg.Inch, [][]*plot.Plot{{p}})
}

// plotLatency has a row for each thing that was timed: median and 99th percentile on a logarithmic axis.
func (r *Results) plotLatency(path string) error {
	type row struct {
		name   string
		times  Times
		colour color.Color
	}
	var rows []row
	for i := len(r.Latency.Requests) - 1; i >= 0; i-- {
		request := r.Latency.Requests[i]
		rows = append(rows,
			row{"request, " + titles[request.Algorithm], request.Chain, blue},
			row{"raw token, " + titles[request.Algorithm], request.Raw, black})
	}
	rows = append(rows, row{"fdatasync", r.Latency.Fsync, green}, row{"echo, bare tunnel", r.Latency.Echo, green})
	if r.Connects != nil {
		rows = append(rows, row{"connect", r.Connects.Chain, blue}, row{"connect, bare tunnel", r.Connects.Bare, green})
	}
	p := newPlot("One at a time: median (dot) to 99th percentile (bar)", "microseconds, logarithmic", "")
	names := make([]string, len(rows))
	low, high := math.Inf(1), 0.0
	for i, row := range rows {
		names[i] = row.name
		low, high = math.Min(low, row.times.P50), math.Max(high, row.times.P99)
		line, err := plotter.NewLine(plotter.XYs{{X: row.times.P50, Y: float64(i)}, {X: row.times.P99, Y: float64(i)}})
		if err != nil {
			return err
		}
		dot, err := plotter.NewScatter(plotter.XYs{{X: row.times.P50, Y: float64(i)}})
		if err != nil {
			return err
		}
		line.Color, line.Width = row.colour, vg.Points(2)
		dot.Color, dot.Shape, dot.Radius = row.colour, draw.CircleGlyph{}, vg.Points(3.5)
		p.Add(line, dot)
	}
	p.NominalY(names...)
	p.Y.Min, p.Y.Max = -0.6, float64(len(rows))-0.4
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, powers{}
	p.X.Min, p.X.Max = math.Pow(10, math.Floor(math.Log10(low))), math.Pow(10, math.Ceil(math.Log10(high)))
	p.Add(verticals())
	return save(path, 8*vg.Inch, vg.Length(0.9+0.28*float64(len(rows)))*vg.Inch, [][]*plot.Plot{{p}})
}

// verticals are faint lines at the labelled ticks.
func verticals() *plotter.Grid {
	grid := plotter.NewGrid()
	grid.Vertical.Color = grey
	grid.Horizontal.Width = 0
	return grid
}

// powers labels the powers of ten.
type powers struct{}

func (powers) Ticks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for power := math.Pow(10, math.Floor(math.Log10(low))); power <= high*1.001; power *= 10 {
		ticks = append(ticks, plot.Tick{Value: power, Label: fmt.Sprintf("%.0f", power)})
		for n := 2.0; n < 10 && n*power <= high; n++ {
			ticks = append(ticks, plot.Tick{Value: n * power})
		}
	}
	return ticks
}

// plotMemory draws what idle legs take.
func (r *Results) plotMemory(path string) error {
	p := newPlot("Memory by idle legs", "legs waiting at the bridge", "proportional set size, MiB")
	for _, process := range []struct {
		name   string
		colour color.Color
		pss    func(MemoryResult) int
	}{
		{"server", blue, func(m MemoryResult) int { return m.ServerPSS }},
		{"bridge", orange, func(m MemoryResult) int { return m.BridgePSS }},
	} {
		var points plotter.XYs
		for _, m := range r.Memory {
			if m.Sessions == 0 {
				points = append(points, plotter.XY{X: float64(m.Legs), Y: float64(process.pss(m)) / 1024})
			}
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return err
		}
		line.Color, line.Width = process.colour, vg.Points(1.8)
		dots.Color, dots.Shape, dots.Radius = process.colour, draw.CircleGlyph{}, vg.Points(3)
		p.Add(line, dots)
		p.Legend.Add(process.name, line, dots)
	}
	p.Y.Min = 0
	p.X.Tick.Marker = thousands{}
	p.Legend.Top, p.Legend.Left = true, true
	p.Legend.XOffs = vg.Points(8)
	return save(path, 7*vg.Inch, 3.6*vg.Inch, [][]*plot.Plot{{p}})
}
