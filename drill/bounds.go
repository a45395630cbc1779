package drill

import (
	"fmt"
	"runtime"
	"runtime/metrics"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// Bounds of what a drill's own code may take. A drill is a small program: what exceeds them is a mistake, or worse.
const (
	maxSteps     = 2_000_000 // of Starlark; a drill that loops for ever ends
	maxHeapBytes = 64 << 20  // that the heap may grow by while it runs
	maxRange     = 1 << 20   // elements of a range
	maxBits      = 1 << 16   // of a product
	lookSteps    = 4         // between two looks at the heap: values can double at each step
)

// bound gives a thread its bounds.
func bound(t *starlark.Thread) {
	runtime.GC() // what nobody holds any more is not part of the base, else each greedy drill would let the next one take as much again
	base, steps := heapBytes(), uint64(0)
	t.SetMaxExecutionSteps(lookSteps)
	t.OnMaxSteps = func(t *starlark.Thread) {
		steps = t.ExecutionSteps()
		switch {
		case steps > maxSteps:
			t.Cancel(fmt.Sprintf("it took %d steps: does it loop for ever?", steps))
			return
		case heapBytes() > base+maxHeapBytes:
			runtime.GC() // only what is really held counts
			if held := heapBytes(); held > base+maxHeapBytes {
				t.Cancel(fmt.Sprintf("it holds %d MiB, at most %d are allowed", (held-base)>>20, maxHeapBytes>>20))
				return
			}
		}
		t.SetMaxExecutionSteps(steps + lookSteps)
	}
}

func heapBytes() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// boundedRange is Starlark's range without those that only serve to fill memory.
func boundedRange(t *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	v, err := starlark.Call(t, starlark.Universe["range"], args, kwargs)
	if err != nil {
		return nil, err
	}
	if n := starlark.Len(v); n > maxRange {
		return nil, fmt.Errorf("range of %d elements: at most %d are allowed", n, maxRange)
	}
	return v, nil
}

// timesWord is what `*` becomes: a name that no drill can write.
const timesWord = "*"

// boundedTimes is Starlark's `*` without repetitions that only serve to fill memory.
func boundedTimes(_ *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple, _ []starlark.Tuple) (starlark.Value, error) {
	if a, ok := args[0].(starlark.Int); ok {
		if b, ok := args[1].(starlark.Int); ok && a.BigInt().BitLen()+b.BigInt().BitLen() > maxBits {
			return nil, fmt.Errorf("a product of more than %d bits", maxBits)
		}
	}
	for i := range 2 {
		n, isInt := args[i].(starlark.Int)
		seq, isSeq := args[1-i].(interface{ Len() int })
		if !isInt || !isSeq {
			continue
		}
		unit := 16 // of an element
		if _, text := args[1-i].(starlark.String); text {
			unit = 1
		}
		if count, err := starlark.AsInt32(n); err != nil || count > 0 && seq.Len() > maxHeapBytes/unit/count {
			return nil, fmt.Errorf("%d elements %v times are too many: at most %d MiB are allowed", seq.Len(), n, maxHeapBytes>>20)
		}
	}
	return starlark.Binary(syntax.STAR, args[0], args[1])
}

// boundTimes puts boundedTimes in the place of each `*` and `*=`: X * Y becomes 1 and times(X, Y), which is the same value in the same node.
func boundTimes(tree *syntax.File) (err error) {
	syntax.Walk(tree, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.AssignStmt:
			if n.Op != syntax.STAR_EQ {
				break
			}
			name, plain := n.LHS.(*syntax.Ident)
			if !plain {
				err = fmt.Errorf("%v: write x = x * y in place of x *= y here", n.OpPos)
				break
			}
			n.Op, n.RHS = syntax.EQ, &syntax.BinaryExpr{X: &syntax.Ident{NamePos: name.NamePos, Name: name.Name}, OpPos: n.OpPos, Op: syntax.STAR, Y: n.RHS}
		case *syntax.BinaryExpr:
			if n.Op == syntax.STAR {
				call := &syntax.CallExpr{Fn: &syntax.Ident{NamePos: n.OpPos, Name: timesWord}, Lparen: n.OpPos, Args: []syntax.Expr{n.X, n.Y}, Rparen: n.OpPos}
				n.X, n.Op, n.Y = &syntax.Literal{Token: syntax.INT, TokenPos: n.OpPos, Raw: "1", Value: int64(1)}, syntax.AND, call
			}
		}
		return true
	})
	return err
}
