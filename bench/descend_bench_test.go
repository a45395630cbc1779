package bench

import (
	"fmt"
	"testing"
)

// What the descent takes on the clusters that it is compared with hbal on, from text to text as there.
func BenchmarkDescend(b *testing.B) {
	for _, size := range [][2]int{{8, 60}, {40, 200}} {
		text := drawGaneti(1, size[0], size[1]).String()
		b.Run(fmt.Sprintf("%d-%d", size[0], size[1]), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c, err := ParseGaneti(text)
				if err != nil {
					b.Fatal(err)
				}
				after := Descend(c)
				_ = after.String()
				b.ReportMetric(float64(after.movedFrom(c)), "moved")
				b.ReportMetric(after.Score(), "score")
			}
		})
	}
}
