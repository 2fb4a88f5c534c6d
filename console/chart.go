package console

import (
	"fmt"
	"math"
	"strings"
)

// The size of the chart, in its own units.
const (
	chartWidth  = 900
	chartHeight = 180
)

// Chart is a picture of the last minutes: for each kind, the outline of an area, one on
// top of the other.
type Chart struct {
	Width, Height int
	Top           float64 // calls a second at the upper edge
	Areas         []Area
	Grid          string // lines at five minutes, and at half of the height: a path of SVG
	Label         string // what it shows, in words
}

// Area is one kind's.
type Area struct {
	Kind Kind
	Path string // of SVG; numbers and commands only
}

// chartOf draws what came.
func chartOf(r *Recent) *Chart {
	c := &Chart{Width: chartWidth, Height: chartHeight, Top: topOf(r.Points)}
	c.Grid = fmt.Sprintf("M0 %dH%dM%d 0V%dM%d 0V%d", chartHeight/2, chartWidth, chartWidth/3, chartHeight, chartWidth*2/3, chartHeight)
	var paths [kinds]strings.Builder
	for _, p := range r.Points {
		from, to := across(p.From.Seconds()), across(p.To.Seconds())
		if to <= from {
			continue
		}
		sum := 0.0
		for kind, count := range p.Counts {
			if count == 0 {
				continue
			}
			lower := up(sum/c.Top, chartHeight)
			sum += float64(count) / p.seconds()
			upper := up(sum/c.Top, chartHeight)
			if upper == lower && Kind(kind) >= Refused {
				upper = lower - 1 // a single one is seen
			}
			fmt.Fprintf(&paths[kind], "M%d %dH%dV%dH%dZ", from, lower, to, upper, from)
		}
	}
	var said []string
	for kind := range kinds {
		if path := paths[kind].String(); path != "" {
			c.Areas = append(c.Areas, Area{kind, path})
			said = append(said, fmt.Sprintf("%s %s", number(r.All[kind]), kind))
		}
	}
	c.Label = "Calls of the last 15 minutes: none"
	if len(said) > 0 {
		c.Label = "Calls of the last 15 minutes: " + strings.Join(said, ", ")
	}
	return c
}

// topOf is the next round number above the highest rate.
func topOf(points []Point) float64 {
	highest := 0.0
	for _, p := range points {
		var sum uint64
		for _, count := range p.Counts {
			sum += count
		}
		highest = max(highest, float64(sum)/p.seconds())
	}
	if highest <= 1 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(highest)))
	for _, times := range []float64{1, 2, 5} {
		if highest <= times*unit {
			return times * unit
		}
	}
	return 10 * unit
}

// across is where so many seconds ago are.
func across(ago float64) int {
	return int(math.Round(chartWidth * max(0, 1-ago/Span.Seconds())))
}

// up is where a part of the height is; y grows downwards.
func up(part float64, height int) int {
	return max(0, height-int(math.Round(part*float64(height))))
}

// barWidth is the width of bars, in their own units.
const barWidth = 100

// bar is how much of a bar is filled. Something is never nothing.
func bar(part, of float64) int {
	if part <= 0 || of <= 0 {
		return 0
	}
	return max(1, min(barWidth, int(math.Round(barWidth*part/of))))
}
