package postback

import (
	"encoding/json"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// validSeeds are texts at the borders of the grammar.
var validSeeds = []string{
	``, ` `, `{}`, `[]`, "\t\n\r {} \t", `{"a":1}`, `{"a":1,}`, `{,}`, `{"a"}`, `{"a":}`, `{"a" : [ 1 , 2 ] }`, `{a:1}`, `{'a':1}`, `{"a":1 "b":2}`,
	`[1,]`, `[,1]`, `[1 2]`, `[1`, `[`, `{`, `]`, `}`, `[}`, `{]`, `{"a":1]`, `[1}`, `{}{}`, `{}x`, `null`, `nul`, `nulls`, `true`, `tru`, `false`, `falsey`, `True`,
	`0`, `-0`, `00`, `01`, `-`, `+1`, `1.`, `.1`, `1.0`, `1e`, `1e+`, `1e-5`, `1E5`, `1e5.0`, `-1.5e+10`, `1-`, `0x1`, `1e999`, `NaN`, `Infinity`,
	`"`, `""`, `"a`, `"\"`, `"\\"`, `"\a"`, `"\b\f\n\r\t\/\""`, `"\u12"`, `"\u123g"`, `"\uD800"`, `"\u00e9"`, `"\U0041"`, "\"\x00\"", "\"\x1f\"", "\"\x7f\"", "\"\xff\"", "\"\n\"",
	"\u00a0{}", "\ufeff{}", "{}\x00", "{}\v", strings.Repeat("[", 100) + strings.Repeat("]", 100), strings.Repeat("[", 100), `{"a":{"a":{"a":[{"a":[]}]}}}`,
}

func TestValidJSON(t *testing.T) {
	texts := append([]string(nil), validSeeds...)
	for _, depth := range []int{maxDepth, maxDepth + 1, 10_000, 10_001} {
		texts = append(texts, strings.Repeat("[", depth)+strings.Repeat("]", depth), strings.Repeat(`{"a":`, depth)+"1"+strings.Repeat("}", depth))
	}
	for _, text := range texts {
		if got, want := validJSON([]byte(text)), json.Valid([]byte(text)); got != want {
			t.Errorf("%.60q: %t, want %t", text, got, want)
		}
	}
	whole := `{"a":[1.5e-3,true,null,{"\u00e9":"x\n"}],"b":{}}`
	for end := range len(whole) {
		if validJSON([]byte(whole[:end])) {
			t.Errorf("%q is valid", whole[:end])
		}
	}
}

func FuzzValidJSON(f *testing.F) {
	for _, text := range validSeeds {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if got, want := validJSON(text), json.Valid(text); got != want {
			t.Errorf("%q: %t, want %t", text, got, want)
		}
	})
}

func BenchmarkValidJSON(b *testing.B) {
	record := []byte(`{"event":"page_view","client":"0f3a9c1b-77aa-4e21-a3f0-9b1c22d3e4f5","user":4711833,"at":1790000000123,"url":"https://shop.example/shoes/blue-running-00042","price":129.95,"from":"https://www.google.com/","title":"leather classic travel bag office garden kitchen table","td_record_time":1790000001}`)
	b.Run("ours", func(b *testing.B) {
		for b.Loop() {
			validJSON(record)
		}
	})
	b.Run("encoding/json", func(b *testing.B) {
		for b.Loop() {
			json.Valid(record)
		}
	})
}

// TestValidStack: brackets, of which a small body has many, take no large stack: that
// is memory that max_buffered does not count.
func TestValidStack(t *testing.T) {
	const callers = 50
	body := []byte(`{"a":` + strings.Repeat("[", 9_000) + strings.Repeat("]", 9_000) + `}`)
	wait := make(chan struct{})
	var read, gone sync.WaitGroup
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range callers {
		read.Add(1)
		gone.Go(func() {
			if !validJSON(body) {
				t.Error("it is no JSON")
			}
			read.Done()
			<-wait
		})
	}
	read.Wait()
	runtime.ReadMemStats(&after)
	close(wait)
	gone.Wait()
	if after.StackInuse > before.StackInuse+callers*64<<10 {
		t.Errorf("%d bytes of stack for %d bodies of %d bytes", after.StackInuse-before.StackInuse, callers, len(body))
	}
}
