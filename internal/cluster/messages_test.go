package cluster

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
)

// assemble puts messages together as the far end does.
func assemble(t *testing.T, messages []part) part {
	t.Helper()
	var a assembly
	for i, m := range messages {
		object, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if len(object) > 60<<10 {
			t.Errorf("a message has %d bytes", len(object))
		}
		whole, complete, err := a.add(object)
		if err != nil || complete != (i == len(messages)-1) {
			t.Fatalf("message %d of %d: complete %t, %v", i+1, len(messages), complete, err)
		}
		if complete {
			return whole
		}
	}
	t.Fatal("no messages")
	return part{}
}

func TestPiecesMakeTheWholeAgain(t *testing.T) {
	for _, n := range []int{0, 1, 3000} {
		want := part{From: 3, To: 9, Weights: map[string]int{}}
		for i := range n {
			want.Weights[fmt.Sprint(i, strings.Repeat("<", 100))] = i // '<' is six bytes of JSON
		}
		got := assemble(t, pieces(want))
		if got.From != 3 || got.To != 9 || !maps.Equal(got.Weights, want.Weights) {
			t.Errorf("%d keys came back as %d, from %d to %d", n, len(got.Weights), got.From, got.To)
		}
	}
}

func TestPiecesOutOfBoundsAreRefused(t *testing.T) {
	for name, object := range map[string]string{
		"no JSON":       `{`,
		"backwards":     `{"from":2,"to":1}`,
		"no key":        `{"to":1,"weights":{"":1}}`,
		"long key":      `{"to":1,"weights":{"` + strings.Repeat("k", 600) + `":1}}`,
		"below zero":    `{"to":1,"weights":{"k":-1}}`,
		"beyond bounds": `{"to":1,"weights":{"k":99999999999}}`,
	} {
		var a assembly
		if _, _, err := a.add([]byte(object)); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	var a assembly
	if _, _, err := a.add([]byte(`{"from":1,"to":2,"more":true}`)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.add([]byte(`{"from":1,"to":3}`)); err == nil {
		t.Error("pieces of two deltas went together")
	}
}

// FuzzPieces feeds what a peer may send, in any order, and wants bounds to hold.
func FuzzPieces(f *testing.F) {
	f.Add([]byte(`{"to":1,"weights":{"k":1},"more":true}`), []byte(`{"to":1,"weights":{"l":2}}`))
	f.Add([]byte(`{"from":1,"to":0}`), []byte(`null`))
	f.Add([]byte(`[]`), []byte(`{"weights":null}`))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var a assembly
		for _, object := range [][]byte{first, second} {
			whole, complete, err := a.add(object)
			if err != nil {
				return
			}
			if !complete {
				continue
			}
			if whole.From > whole.To {
				t.Errorf("from %d to %d", whole.From, whole.To)
			}
			for key, weight := range whole.Weights {
				if key == "" || len(key) > maxKey || weight < 0 || weight > maxWeight {
					t.Errorf("key of %d bytes with weight %d", len(key), weight)
				}
			}
		}
	})
}
