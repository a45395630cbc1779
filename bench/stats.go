package bench

import (
	"math"
	"slices"
)

// Figure sums up the samples of one quantity.
type Figure struct {
	Samples  int     `json:"samples"`
	MedianUs float64 `json:"median_us"`
	P99Us    float64 `json:"p99_us"`
	MeanUs   float64 `json:"mean_us"`
	FloorUs  float64 `json:"floor_us,omitempty"` // the same without the protocol, measured in the same run
	Ratio    float64 `json:"ratio,omitempty"`    // median over floor
}

// summarize sums up samples in nanoseconds.
func summarize(ns []uint32) Figure {
	if len(ns) == 0 {
		return Figure{}
	}
	sorted := slices.Clone(ns)
	slices.Sort(sorted)
	var sum float64
	for _, n := range sorted {
		sum += float64(n)
	}
	return Figure{
		Samples:  len(sorted),
		MedianUs: micros(float64(quantile(sorted, 0.5))),
		P99Us:    micros(float64(quantile(sorted, 0.99))),
		MeanUs:   micros(sum / float64(len(sorted))),
	}
}

// over puts a figure beside its floor.
func (f Figure) over(floorUs float64) Figure {
	f.FloorUs = floorUs
	if floorUs > 0 {
		f.Ratio = round3(f.MedianUs / floorUs)
	}
	return f
}

// quantile returns the smallest sample that at least the share q of all do not exceed.
func quantile(sorted []uint32, q float64) uint32 {
	i := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[max(0, min(i, len(sorted)-1))]
}

func micros(ns float64) float64 { return round3(ns / 1000) }
func round3(x float64) float64  { return math.Round(x*1000) / 1000 }

// middle returns the median.
func middle(all []float64) float64 {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Clone(all)
	slices.Sort(sorted)
	return sorted[len(sorted)/2]
}

// quotient is 0 where there is nothing to divide by.
func quotient(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return round3(a / b)
}

// medianLies returns between which two samples the median of what they were drawn from lies with 95% confidence, whatever its distribution: how many of n samples lie
// below it is binomial, so its rank is n/2 give or take 1.96 standard deviations of half the root of n.
func medianLies(all []float64) (low, high float64) {
	if len(all) == 0 {
		return 0, 0
	}
	sorted := slices.Clone(all)
	slices.Sort(sorted)
	n := float64(len(sorted))
	i := max(0, int(n/2-1.96*math.Sqrt(n)/2))
	return sorted[i], sorted[len(sorted)-1-i]
}
