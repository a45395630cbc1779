package recovery

import (
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

func TestContain(t *testing.T) {
	parts := []Part{{Part: 0, Server: 1, Incarnation: 1}, {Part: 1, Server: 2, Incarnation: 2}, {Part: 2, Server: 3, Incarnation: 3}}
	b := LostServer{Server: 2, Name: "b-1", Cell: "b", Incarnation: 2, WholeCell: true}
	c := LostServer{Server: 3, Name: "c-1", Cell: "c", Incarnation: 3}
	home := LostServer{Server: 1, Name: "a-1", Cell: "a", Incarnation: 1, WholeCell: true}
	former := LostServer{Server: 2, Name: "b-1", Cell: "b", Incarnation: 1, WholeCell: true}
	borrows := Part{Part: 0, Server: 1, Incarnation: 1, Lenders: []Lender{{9, 9}, {2, 2}}}
	for _, tt := range []struct {
		name   string
		lost   []LostServer
		vm     VM
		fate   Fate
		reason string
		gone   int
	}{
		{"no part there", []LostServer{{Server: 9, Name: "d-1", Cell: "d", Incarnation: 9, WholeCell: true}}, VM{Running: true, Parts: parts}, Untouched, "", 0},
		{"a part on a former incarnation is none", []LostServer{former}, VM{Running: true, Parts: parts}, Untouched, "", 0},
		{"stop", []LostServer{b}, VM{Running: true, Parts: parts}, Lost, "cell b lost in epoch 7", 1},
		{"one server of a cell", []LostServer{c}, VM{Running: true, Parts: parts}, Lost, "server c-1 of cell c lost in epoch 7", 1},
		{"two losses", []LostServer{b, c}, VM{Running: true, Parts: parts}, Lost, "cell b and server c-1 of cell c lost in epoch 7", 2},
		{"touch goes on", []LostServer{b}, VM{Running: true, OnLossTouch: true, Parts: parts}, Continues, "cell b lost in epoch 7", 1},
		{"touch, but home is gone", []LostServer{home}, VM{Running: true, OnLossTouch: true, Parts: parts}, Lost,
			"cell a lost in epoch 7; the vm's home was there, and with it its devices", 1},
		{"touch, but it never ran", []LostServer{b}, VM{OnLossTouch: true, Parts: parts}, Lost, "cell b lost in epoch 7", 1},
		{"a part lost before is not lost again", []LostServer{b}, VM{Running: true, OnLossTouch: true,
			Parts: []Part{parts[0], {Part: 1, Server: 2, Incarnation: 2, Gone: true}}}, Untouched, "", 0},
		{"who lends memory", []LostServer{b}, VM{Running: true, Parts: []Part{borrows}}, Lost, "cell b lost in epoch 7", 1},
		{"who lends memory to a part that goes on elsewhere", []LostServer{b}, VM{Running: true, OnLossTouch: true, Home: 2, Parts: []Part{borrows, parts[2]}}, Continues,
			"cell b lost in epoch 7", 1},
		{"who lends memory to a protected VM", []LostServer{b}, VM{Running: true, Parts: []Part{borrows, {Part: 2, Server: 3, Incarnation: 3, Standby: true, Holds: true}}}, Restored,
			"cell b lost in epoch 7", 1},
		{"who lends memory to the image of a recovery", []LostServer{b}, VM{Running: true, Parts: []Part{{Part: 0, Server: 1, Incarnation: 1, Holds: true, Lenders: borrows.Lenders}}},
			Lost, "cell b lost in epoch 7", 1},
		{"a former incarnation of who lends memory", []LostServer{former}, VM{Running: true, Parts: []Part{borrows}}, Untouched, "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := Contain(Loss{Epoch: 7, Servers: tt.lost}, tt.vm)
			if d.Fate != tt.fate || d.Reason != tt.reason || len(d.Gone) != tt.gone {
				t.Errorf("got %+v", d)
			}
		})
	}
}

func TestClock(t *testing.T) {
	var c Clock
	if _, ok := c.Took(Agree); ok {
		t.Error("a stage that never ran took a time")
	}
	c.Span(Agree, 100, 350)
	c.Span(Fence, 100, 90)
	if d, ok := c.Took(Agree); !ok || d != 250 {
		t.Errorf("agree took %d", d)
	}
	if d, ok := c.Took(Fence); !ok || d != ident.Micros(0) {
		t.Errorf("fence took %d", d)
	}
	for _, s := range Stages() {
		if s.String() == "stage?" {
			t.Errorf("stage %d has no name", s)
		}
	}
}
