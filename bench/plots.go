package main

import (
	"errors"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
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
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
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
	p.Title.Padding = vg.Points(8)
	p.X.Label.Padding, p.Y.Label.Padding = vg.Points(4), vg.Points(4)
	p.X.Tick.Marker, p.Y.Tick.Marker = round{}, round{}
	return p
}

// picture is what one file shows: rows of plots below the entries of their legend.
type picture struct {
	width, height vg.Length
	plots         [][]*plot.Plot
	legends       []plot.Legend // side by side
}

// legendHeight is that of the strip above the plots, of at most three entries.
const legendHeight = 44

func (pic picture) save(path string) error {
	canvas := vgsvg.New(pic.width, pic.height)
	whole := draw.New(canvas)
	whole.SetColor(color.White)
	whole.Fill(whole.Rectangle.Path())
	below := draw.Crop(whole, vg.Points(8), -vg.Points(14), vg.Points(6), -vg.Points(8))
	if len(pic.legends) > 0 {
		strip := draw.Crop(below, vg.Points(40), 0, below.Size().Y-vg.Points(legendHeight), 0)
		part := strip.Size().X / vg.Length(len(pic.legends))
		for i := range pic.legends {
			pic.legends[i].Draw(draw.Crop(strip, part*vg.Length(i), -part*vg.Length(len(pic.legends)-1-i), 0, 0))
		}
		below = draw.Crop(below, 0, 0, 0, -vg.Points(legendHeight))
	}
	tiles := draw.Tiles{Rows: len(pic.plots), Cols: len(pic.plots[0]), PadX: vg.Points(18), PadY: vg.Points(14)}
	aligned := plot.Align(pic.plots, tiles, below)
	for i := range pic.plots {
		for j, p := range pic.plots[i] {
			if p != nil {
				p.Draw(aligned[i][j])
			}
		}
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = canvas.WriteTo(file)
	return errors.Join(err, file.Close())
}

// newLegend returns an empty legend for the strip.
func newLegend() plot.Legend {
	l := plot.NewLegend()
	l.Left, l.Top, l.ThumbnailWidth = true, true, vg.Points(26)
	l.Padding = vg.Points(3)
	return l
}

// round labels an axis at four to eight round values.
type round struct{}

func (round) Ticks(low, high float64) []plot.Tick {
	step := math.Pow(10, math.Floor(math.Log10((high-low)/4)))
	for _, wider := range []float64{2, 2.5, 2} { // 1, 2, 5, 10
		if (high-low)/step <= 8 {
			break
		}
		step *= wider
	}
	var ticks []plot.Tick
	for n := math.Ceil(low / step); n*step <= high*1.0001; n++ {
		ticks = append(ticks, plot.Tick{Value: n * step, Label: grouped(n*step, step)})
	}
	return ticks
}

// grouped writes a number with as many decimals as the step needs, and a comma between thousands.
func grouped(value, step float64) string {
	decimals := max(0, int(-math.Floor(math.Log10(step)+1e-9)))
	text := fmt.Sprintf("%.*f", decimals, value)
	if value < 1000 {
		return text
	}
	return fmt.Sprintf("%s,%s", text[:len(text)-3], text[len(text)-3:])
}

// inFlight are the loads that lie on one axis.
var inFlight = []int{1, 8, 64}

// plotSignatures has a panel for each algorithm: rates by requests in flight, the raw token as a line across.
func (r *Results) plotSignatures(path string) error {
	pic := picture{width: 9 * vg.Inch, legends: []plot.Legend{newLegend(), newLegend()}}
	for i := range r.Signatures {
		legends := pic.legends
		if i > 0 {
			legends = []plot.Legend{newLegend(), newLegend()} // the first panel's entries are everybody's
		}
		p, err := signaturePanel(&r.Signatures[i], legends)
		if err != nil {
			return err
		}
		if i%2 == 0 {
			pic.plots = append(pic.plots, make([]*plot.Plot, 2)) // the last row may have one only
		}
		pic.plots[i/2][i%2] = p
	}
	pic.height = vg.Length(3.1*float64(len(pic.plots))+0.6) * vg.Inch
	return pic.save(path)
}

func signaturePanel(a *AlgorithmResult, legends []plot.Legend) (*plot.Plot, error) {
	p := newPlot(titles[a.Algorithm], "requests in flight on one connection", "signatures a second")
	top := 0.0
	for _, s := range []struct {
		name, prefix string
		colour       color.Color
	}{
		{"through the three processes", "", blue},
		{"with the client library, which verifies", "library, ", orange},
	} {
		points := make(plotter.XYs, len(inFlight))
		for i, n := range inFlight {
			points[i] = plotter.XY{X: float64(i), Y: a.figure(fmt.Sprintf("%s%d in flight", s.prefix, n)).Median}
			top = math.Max(top, points[i].Y)
		}
		line, dots, err := linePoints(points, s.colour)
		if err != nil {
			return nil, err
		}
		p.Add(line, dots)
		legends[0].Add(s.name, line, dots)
	}
	right := float64(len(inFlight)) - 0.7
	for _, across := range []struct {
		name   string
		value  float64
		colour color.Color
		dashes []vg.Length
	}{
		{"raw token, at its best number of sessions", a.bestRaw().Median, black, []vg.Length{vg.Points(5), vg.Points(3)}},
		{"4 batches of 100 in flight", a.figure("4 batches of 100").Median, green, []vg.Length{vg.Points(1.5), vg.Points(2.5)}},
	} {
		line, err := plotter.NewLine(plotter.XYs{{X: -0.3, Y: across.value}, {X: right, Y: across.value}})
		if err != nil {
			return nil, err
		}
		line.Color, line.Width, line.Dashes = across.colour, vg.Points(1.6), across.dashes
		p.Add(line)
		legends[1].Add(across.name, line)
		top = math.Max(top, across.value)
	}
	names := make([]string, len(inFlight))
	for i, n := range inFlight {
		names[i] = fmt.Sprint(n)
	}
	p.NominalX(names...)
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = -0.3, right, 0, top*1.08
	return p, nil
}

func linePoints(points plotter.XYs, colour color.Color) (*plotter.Line, *plotter.Scatter, error) {
	line, dots, err := plotter.NewLinePoints(points)
	if err != nil {
		return nil, nil, err
	}
	line.Color, line.Width = colour, vg.Points(1.8)
	dots.Color, dots.Shape, dots.Radius = colour, draw.CircleGlyph{}, vg.Points(3)
	return line, dots, nil
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
	pic := picture{width: 8 * vg.Inch, height: 4.2 * vg.Inch, plots: [][]*plot.Plot{{p}}, legends: []plot.Legend{newLegend(), newLegend()}}
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
		pic.legends[i/3].Add(l.name, bars)
	}
	one, err := plotter.NewLine(plotter.XYs{{X: -0.5, Y: 1}, {X: float64(len(r.Signatures)) - 0.5, Y: 1}})
	if err != nil {
		return err
	}
	one.Color, one.Dashes = black, []vg.Length{vg.Points(5), vg.Points(3)}
	p.Add(one)
	pic.legends[1].Add("the raw token's own rate", one)
	var names []string
	for i := range r.Signatures {
		names = append(names, titles[r.Signatures[i].Algorithm])
	}
	p.NominalX(names...)
	p.X.Min, p.X.Max, p.Y.Min = -0.5, float64(len(names))-0.5, 0
	p.Y.Max = math.Max(p.Y.Max, 1) * 1.05
	return pic.save(path)
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
			row{"the three in turn, " + titles[request.Algorithm], request.Parts, green},
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
	p.X.Min, p.X.Max = low/1.6, high*1.6
	p.Add(verticals())
	return picture{width: 8 * vg.Inch, height: vg.Length(1+0.28*float64(len(rows))) * vg.Inch, plots: [][]*plot.Plot{{p}}}.save(path)
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
		ticks = append(ticks, plot.Tick{Value: power, Label: grouped(power, power)})
		for n := 2.0; n < 10 && n*power <= high; n++ {
			ticks = append(ticks, plot.Tick{Value: n * power})
		}
	}
	return ticks
}

// plotMemory draws what idle legs take.
func (r *Results) plotMemory(path string) error {
	p := newPlot("Memory by idle legs", "legs waiting at the bridge", "proportional set size, MiB")
	pic := picture{width: 7 * vg.Inch, height: 3.6 * vg.Inch, plots: [][]*plot.Plot{{p}}, legends: []plot.Legend{newLegend()}}
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
		line, dots, err := linePoints(points, process.colour)
		if err != nil {
			return err
		}
		p.Add(line, dots)
		pic.legends[0].Add(process.name, line, dots)
	}
	p.X.Min, p.Y.Min = 0, 0
	return pic.save(path)
}
