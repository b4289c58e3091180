package history

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// op is one operation on key k by client 1, or by another with as.
func op(kind Kind, invoke, ret int64, result Outcome) Operation {
	return Operation{Client: 1, Kind: kind, Key: "k", Invoke: invoke, Return: ret, Result: result}
}

func residue(o Operation) Operation { o.Residue = true; return o }

func pending(kind Kind, invoke int64) Operation { return op(kind, invoke, Never, Unknown) }

func settled(at int64) Operation { return Operation{Kind: Settled, Invoke: at, Return: at, Result: OK} }

func TestHistoriesThatCanHaveHappened(t *testing.T) {
	for name, h := range map[string][]Operation{
		"a life":                                    {op(Create, 1, 2, OK), op(Use, 3, 4, OK), op(Destroy, 5, 6, OK), op(Use, 7, 8, WasDestroyed), op(Use, 9, 10, NotFound)},
		"no such key before its creation":           {op(Use, 1, 2, NotFound), op(Create, 3, 4, OK), op(Use, 5, 6, OK)},
		"seen and not seen while it is created":     {op(Create, 1, 9, OK), op(Use, 2, 3, OK), op(Use, 4, 5, NotFound), op(Use, 6, 7, OK), op(Use, 10, 11, OK)},
		"seen and not seen while it is destroyed":   {op(Create, 1, 2, OK), op(Destroy, 3, 9, OK), op(Use, 4, 5, WasDestroyed), op(Use, 6, 7, OK), op(Use, 10, 11, NotFound)},
		"unreachable is no evidence":                {op(Create, 1, 2, OK), op(Use, 3, 4, Unknown), op(Use, 5, 6, Nothing), op(Use, 7, 8, OK), op(Destroy, 9, 10, Nothing), op(Use, 11, 12, OK)},
		"a failed creation":                         {op(Create, 1, 2, Nothing), op(Use, 3, 4, NotFound), settled(5), op(Use, 6, 7, NotFound)},
		"a failed creation, seen while it lasts":    {op(Create, 1, 9, Nothing), op(Use, 2, 3, OK), op(Use, 4, 5, NotFound), op(Use, 10, 11, WasDestroyed)},
		"a failed creation with residue":            {residue(op(Create, 1, 2, Nothing)), op(Use, 3, 4, OK), op(Use, 5, 6, NotFound), settled(7), op(Use, 8, 9, WasDestroyed)},
		"an unknown creation that was":              {pending(Create, 1), op(Use, 3, 4, OK), settled(5), op(Use, 6, 7, OK)},
		"an unknown creation that was not":          {pending(Create, 1), op(Use, 3, 4, NotFound), settled(5), op(Use, 6, 7, NotFound)},
		"an unknown creation, late":                 {op(Create, 1, 2, Unknown), op(Use, 3, 4, NotFound), op(Use, 5, 6, OK), settled(7), op(Use, 8, 9, OK)},
		"an unknown creation, undone later":         {op(Create, 1, 2, Unknown), op(Use, 3, 4, OK), op(Use, 5, 6, WasDestroyed), settled(7), op(Use, 8, 9, NotFound)},
		"an unknown creation, destroyed":            {op(Create, 1, 2, Unknown), op(Destroy, 3, 4, OK), op(Use, 5, 6, WasDestroyed)},
		"an unknown destruction that was":           {op(Create, 1, 2, OK), pending(Destroy, 3), op(Use, 4, 5, OK), op(Use, 6, 7, WasDestroyed), settled(8), op(Use, 9, 10, WasDestroyed)},
		"an unknown destruction that was not":       {op(Create, 1, 2, OK), pending(Destroy, 3), op(Use, 4, 5, OK), settled(8), op(Use, 9, 10, OK)},
		"a destruction not known everywhere":        {op(Create, 1, 2, OK), residue(op(Destroy, 3, 4, OK)), op(Use, 5, 6, WasDestroyed), op(Use, 7, 8, OK), settled(9), op(Use, 10, 11, WasDestroyed)},
		"destroyed twice":                           {op(Create, 1, 2, OK), op(Destroy, 3, 4, OK), op(Destroy, 5, 6, WasDestroyed)},
		"destroyed by two at once":                  {op(Create, 1, 2, OK), op(Destroy, 3, 6, OK), op(Destroy, 4, 5, OK), op(Use, 7, 8, WasDestroyed)},
		"an answer to a destruction that it caused": {op(Create, 1, 2, OK), op(Destroy, 3, 4, WasDestroyed), op(Use, 5, 6, WasDestroyed)},
		"settled before anything":                   {settled(1), op(Create, 2, 3, OK), settled(4), op(Use, 5, 6, OK)},
	} {
		t.Run(name, func(t *testing.T) {
			for _, v := range Check(h) {
				t.Error(v)
			}
		})
	}
}

func TestHistoriesThatBreakAPromise(t *testing.T) {
	for name, h := range map[string][]Operation{
		"lost after its creation":                       {op(Create, 1, 2, OK), op(Use, 3, 4, NotFound)},
		"lost after it worked":                          {op(Create, 1, 2, OK), op(Use, 3, 4, OK), op(Use, 5, 6, NotFound)},
		"lost after the cluster settled":                {op(Create, 1, 2, OK), settled(3), op(Use, 4, 5, NotFound)},
		"destroyed by nobody":                           {op(Create, 1, 2, OK), op(Use, 3, 4, WasDestroyed)},
		"destroyed before its destruction is asked for": {op(Create, 1, 2, OK), op(Use, 3, 4, WasDestroyed), op(Destroy, 5, 6, OK)},
		"destroyed by a refused destruction":            {op(Create, 1, 2, OK), op(Destroy, 3, 4, Nothing), op(Use, 5, 6, WasDestroyed)},
		"alive after its destruction":                   {op(Create, 1, 2, OK), op(Destroy, 3, 4, OK), op(Use, 5, 6, OK)},
		"alive again":                                   {op(Create, 1, 2, OK), op(Destroy, 3, 4, OK), op(Use, 5, 6, WasDestroyed), op(Use, 7, 8, OK)},
		"alive after the cluster settled":               {op(Create, 1, 2, OK), residue(op(Destroy, 3, 4, OK)), settled(5), op(Use, 6, 7, OK)},
		"a failed creation works":                       {op(Create, 1, 2, Nothing), op(Use, 3, 4, OK)},
		"a failed creation works before it is tried":    {op(Use, 1, 2, OK), op(Create, 3, 4, Nothing)},
		"residue outlives the settling":                 {residue(op(Create, 1, 2, Nothing)), settled(3), op(Use, 4, 5, OK)},
		"works before it is created":                    {op(Use, 1, 2, OK), op(Create, 3, 4, OK)},
		"works without a creation":                      {op(Use, 1, 2, OK)},
		"destroyed without a creation":                  {op(Use, 1, 2, WasDestroyed)},
		"an unknown creation decided twice":             {pending(Create, 1), settled(2), op(Use, 3, 4, NotFound), op(Use, 5, 6, OK)},
		"an unknown creation lost":                      {pending(Create, 1), settled(2), op(Use, 3, 4, OK), op(Use, 5, 6, NotFound)},
		"an unknown destruction decided twice":          {op(Create, 1, 2, OK), pending(Destroy, 3), settled(4), op(Use, 5, 6, WasDestroyed), op(Use, 7, 8, OK)},
		"an unknown destruction takes effect too late":  {op(Create, 1, 2, OK), pending(Destroy, 3), settled(4), op(Use, 5, 6, OK), op(Use, 7, 8, WasDestroyed)},
		"an unknown destruction seen and alive":         {op(Create, 1, 2, OK), pending(Destroy, 3), op(Use, 4, 5, WasDestroyed), settled(6), op(Use, 7, 8, OK)},
		"an acknowledged destruction loses to unknown":  {op(Create, 1, 2, Unknown), op(Destroy, 3, 4, OK), op(Use, 5, 6, OK)},
	} {
		t.Run(name, func(t *testing.T) {
			others := []Operation{{Kind: Create, Key: "other", Invoke: 1, Return: 2, Result: OK}, {Kind: Use, Key: "other", Invoke: 3, Return: 4, Result: OK}}
			bad := Check(append(others, h...))
			if len(bad) != 1 || bad[0].Key != "k" || bad[0].Undecided {
				t.Fatalf("not found to break a promise: %v", bad)
			}
			text := bad[0].Error()
			if len(bad[0].Stuck) == 0 || !strings.Contains(text, "\n! client 1 ") {
				t.Errorf("the explanation points at nothing: %s", text)
			}
			var page strings.Builder
			if err := bad[0].Visualize(&page); err != nil || !strings.Contains(page.String(), "<html") {
				t.Errorf("no picture: %v", err)
			}
		})
	}
}

// TestStrictClusterPasses draws what a cluster does that does everything at one
// moment between question and answer: it keeps all promises.
func TestStrictClusterPasses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := NewRecorder(nil)
		now := int64(0)
		exists, destroyed := map[string]bool{}, map[string]bool{}
		for i := range rapid.IntRange(1, 40).Draw(t, "operations") {
			now += 10
			key := fmt.Sprint("key-", rapid.IntRange(0, 3).Draw(t, "key"))
			o := Operation{Client: i % 3, Key: key, Invoke: now - rapid.Int64Range(0, 9).Draw(t, "early"), Return: now + rapid.Int64Range(0, 9).Draw(t, "late")}
			switch rapid.IntRange(0, 4).Draw(t, "kind") {
			case 0:
				o.Kind, o.Result = Create, OK
				if exists[key] || destroyed[key] {
					continue
				}
				exists[key] = true
			case 1:
				o.Kind, o.Result = Destroy, OK
				if !exists[key] {
					o.Result = map[bool]Outcome{true: WasDestroyed, false: NotFound}[destroyed[key]]
				}
				destroyed[key] = destroyed[key] || exists[key]
				delete(exists, key)
			default:
				o.Kind, o.Result = Use, map[bool]Outcome{true: OK, false: NotFound}[exists[key]]
			}
			if rapid.IntRange(0, 9).Draw(t, "lost") == 0 {
				o.Return, o.Result = Never, Unknown
			}
			r.Add(o)
		}
		for _, v := range Check(r.History()) {
			t.Error(v)
		}
	})
}

func TestRecorder(t *testing.T) {
	now := int64(0)
	r := NewRecorder(func() int64 { now++; return now })
	create := r.Invoke(1, Create, "k")
	lost := r.Invoke(2, Use, "k")
	create.Return(OK, true)
	_ = lost
	r.Settled()
	want := []Operation{
		{Client: 1, Kind: Create, Key: "k", Invoke: 1, Return: 3, Result: OK, Residue: true},
		{Client: 2, Kind: Use, Key: "k", Invoke: 2, Return: Never, Result: Unknown},
		{Kind: Settled, Invoke: 4, Return: 4, Result: OK},
	}
	got := r.History()
	for i, w := range want {
		if len(got) != len(want) || got[i] != w {
			t.Fatalf("recorded %v, want %v", got, want)
		}
	}
	if NewRecorder(nil).Invoke(1, Use, "k").op.Invoke < 0 {
		t.Error("the clock runs backwards")
	}
}
