package console

import (
	"strings"
	"testing"
	"time"
)

// TestRates: they are of the last minute, by the time that has really gone by.
func TestRates(t *testing.T) {
	t.Parallel()
	h := new(History)
	at := func(ago time.Duration, v2, lost uint64) *Reading {
		return &Reading{At: now.Add(-ago), Kept: v2, Delivered: 3 * v2, Totals: []Total{{"v2", "forwarded", ToV2, v2}, {"v2", "upstream_5xx", Lost, lost}, {"v2", "preflight", -1, v2}}}
	}
	h.Add(at(20*time.Minute, 1, 0)) // too old
	h.Add(at(10*time.Minute, 100, 5))
	h.Add(at(2*time.Minute, 200, 7))
	h.Add(at(30*time.Second, 900, 9))
	r := h.Recent(at(0, 1400, 10))
	if got, want := r.Minute[ToV2], 10.0; got != want {
		t.Errorf("%v a second, want %v", got, want)
	}
	if r.Rate() != 10+3.0/120 || r.Arriving != 10 || r.Leaving != 30 {
		t.Errorf("rate %v, arriving %v, leaving %v", r.Rate(), r.Arriving, r.Leaving)
	}
	if r.All[ToV2] != 1300 || r.All[Lost] != 5 || r.Alarm[Lost] != 5 {
		t.Errorf("all %v, alarm %v", r.All, r.Alarm)
	}
	if got := r.EmptyIn(200); got != 10*time.Second {
		t.Errorf("empty in %s", got)
	}
	if minutes := r.Minutes(); minutes[0][ToV2] != 500 || minutes[1][ToV2] != 700 || minutes[6][ToV2] != 100 {
		t.Errorf("minutes %v", minutes)
	}
	if len(r.Results) != 3 || r.Results[0].Result == "upstream_5xx" || r.Since != now.Add(-10*time.Minute) {
		t.Errorf("results %v since %s", r.Results, r.Since)
	}
}

// TestRatesOfAMoment: one call soon after the start, or after a reading, is not many a
// second.
func TestRatesOfAMoment(t *testing.T) {
	t.Parallel()
	for _, before := range []time.Duration{time.Millisecond, Step + time.Millisecond} {
		h := new(History)
		h.Add(&Reading{At: now.Add(-before)})
		h.Add(&Reading{At: now.Add(-time.Millisecond)})
		r := h.Recent(&Reading{At: now, Kept: 1, Totals: []Total{{"v2", "forwarded", ToV2, 1}}})
		if rate := r.Minute[ToV2]; rate > 0.1 || rate < 0.09 || r.Arriving != rate || chartOf(r).Top != 1 {
			t.Errorf("%v: %v calls and %v records a second, %v", before, rate, r.Arriving, chartOf(r).Top)
		}
	}
}

// TestCounterBeginsAnew: a counter that is smaller than before is no huge number.
func TestCounterBeginsAnew(t *testing.T) {
	t.Parallel()
	h := new(History)
	h.Add(&Reading{At: now.Add(-time.Minute), Totals: []Total{{"v2", "forwarded", ToV2, 100}}})
	if r := h.Recent(&Reading{At: now, Totals: []Total{{"v2", "forwarded", ToV2, 7}}}); r.All[ToV2] != 7 {
		t.Errorf("%d", r.All[ToV2])
	}
}

// TestQuantiles by hand: of 100 answers, 50 took at most 10 ms, and 40 more at most 100.
func TestQuantiles(t *testing.T) {
	t.Parallel()
	h := new(History)
	times := func(counts ...uint64) map[string]Times {
		return map[string]Times{"v2": {[]float64{0.01, 0.1, 1}, counts, counts[2]}}
	}
	h.Add(&Reading{At: now.Add(-time.Minute), Times: times(1000, 1000, 1000)})
	r := h.Recent(&Reading{At: now, Times: times(1050, 1090, 1100)})
	if got, want := r.Took["v2"], (Took{10 * time.Millisecond, 910 * time.Millisecond}); got != want {
		t.Errorf("%v, want %v", got, want)
	}
	if r = h.Recent(&Reading{At: now, Times: times(1000, 1000, 1000)}); len(r.Took) != 0 {
		t.Errorf("of no answers: %v", r.Took)
	}
}

// TestHistoryIsBounded by its time and by its number.
func TestHistoryIsBounded(t *testing.T) {
	t.Parallel()
	h := new(History)
	for i := range 1000 {
		h.Add(&Reading{At: now.Add(time.Duration(i-1000) * time.Second)})
	}
	if len(h.readings) != steps+1 {
		t.Errorf("%d readings", len(h.readings))
	}
}

// TestChart: areas lie on each other, and a single refusal is seen.
func TestChart(t *testing.T) {
	t.Parallel()
	h := new(History)
	h.Add(&Reading{At: now.Add(-Step)})
	c := chartOf(h.Recent(&Reading{At: now, Totals: []Total{{"v2", "forwarded", ToV2, 5000}, {"v2", "x", Refused, 1}}}))
	if c.Top != 1000 || len(c.Areas) != 2 || c.Areas[0].Path != "M890 180H900V90H890Z" || c.Areas[1].Path != "M890 90H900V89H890Z" {
		t.Errorf("%+v", c)
	}
	if !strings.Contains(c.Label, "5,000 to v2, 1 refused") {
		t.Error(c.Label)
	}
	if c = chartOf(h.Recent(&Reading{At: now})); len(c.Areas) != 0 || !strings.HasSuffix(c.Label, ": none") {
		t.Errorf("%+v", c)
	}
}

func TestTexts(t *testing.T) {
	t.Parallel()
	for got, want := range map[string]string{
		number(1048064): "1,048,064", number(-1234): "-1,234", number(7): "7", number(uint64(1000)): "1,000",
		rate(0): "0", rate(0.01): "under 0.1", rate(1.25): "1.2", rate(3): "3", rate(1234.5): "1,235",
		size(12): "12 B", size(1536): "1.5 KiB", size(10 << 30): "10 GiB",
		span(0): "under a second", span(time.Second): "1 second", span(90 * time.Minute): "1 hour 30 min", span(50 * time.Hour): "2 days 2 h", span(30 * 24 * time.Hour): "30 days",
		took(500 * time.Microsecond): "under 1 ms", took(2500 * time.Microsecond): "2.5 ms", took(250 * time.Millisecond): "250 ms", took(1500 * time.Millisecond): "1.5 s",
		sentence("it is so: ünder way"): "It is so: ünder way.", sentence("ä"): "Ä.", sentence(""): "", sentence("No."): "No.",
		Percent(1234).String(): "12.34", Percent(10000).String(): "100", Percent(50).String(): "0.5",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
