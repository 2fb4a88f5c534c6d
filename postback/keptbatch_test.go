package postback

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestKeptBatch keeps a batch and reads it back.
func TestKeptBatch(t *testing.T) {
	g := BatchGroup{"db", "tbl", benchKey}
	arrival := time.Unix(testArrival, 0)
	k := readKeen(t, `{"db.tbl":[{"n":0},{"n": "}]{\"","keen":{"timestamp":"2026-11-25T02:23:55Z"}},{"time":7},{"#SSUT":true},{"#SSUT":"col"}]}`)
	batch := k.Batches(MaxBatchBytes)[0]
	const uuid = randomUUID
	now := [][]byte{[]byte(`{"n":0,` + uuid + `}`), []byte(`{"n": "}]{\"","time":1795573435,` + uuid + `}`), []byte(`{"time":7,` + uuid + `}`), []byte(`{` + uuid + `}`), []byte(`{"col":1800000000,` + uuid + `}`)}
	later := slices.Clone(now)
	for _, i := range []int{0, 3, 4} {
		later[i] = []byte(strings.TrimSuffix(string(now[i]), "}") + `,"time":1800000000}`)
	}
	if got := batch.Records(); !reflect.DeepEqual(got, now) {
		t.Errorf("got %q", got)
	}
	if got, timed := batch.ToKeep(benchKey, "v2.example", time.Unix(1_000_000_000, 0)); !reflect.DeepEqual(got.Records, now) || timed != TimeUnusable {
		t.Errorf("with a wrong clock: %q, %s", got.Records, timed)
	}
	kept, timed := batch.ToKeep(benchKey, "v2.example", arrival)
	if !reflect.DeepEqual(kept, KeptBatch{g, "v2.example", later}) || timed != TimeAdded || !reflect.DeepEqual(batch.Records(), now) {
		t.Errorf("got %q, %s", kept, timed)
	}
	data := kept.Append([]byte("before"))
	data, _ = bytes.CutPrefix(data, []byte("before"))
	want := "POST /db/tbl HTTP/1.1\r\nHost: v2.example\r\nContent-Type: application/vnd.treasuredata.v1+json\r\nAccept: application/vnd.treasuredata.v1+json\r\n" +
		"Authorization: TD1 " + benchKey + "\r\nContent-Length: " + strconv.Itoa(len(`{"events":[]}`)+len(bytes.Join(later, []byte(",")))) + "\r\n\r\n" +
		`{"events":[` + string(bytes.Join(later, []byte(","))) + `]}`
	if string(data) != want {
		t.Errorf("kept as %q\nwant    %q", data, want)
	}
	if read, ok := ReadKeptBatch(data); !ok || !reflect.DeepEqual(read, kept) {
		t.Errorf("read as %q, %v", read, ok)
	}
	if KeptPayer(data) != "1234" || KeptAccount(data) != "1234/…" || findKeptKey(data) != benchKey {
		t.Errorf("its key is read as %q, %q", KeptPayer(data), KeptAccount(data))
	}
	if kept, err := ReadKept(data); err != nil || kept.Path != "/db/tbl" || kept.Credentials.Key() != benchKey || !json.Valid(kept.Body) {
		t.Errorf("read by ReadKept as %+v, %v", kept, err)
	}
	if _, record, ok := ToBatch(data, arrival, testUUIDBytes); ok {
		t.Errorf("ToBatch makes %q of it", record)
	}
	for end := range data {
		if _, ok := ReadKeptBatch(data[:end]); ok {
			t.Errorf("%q is read", data[:end])
		}
	}
	for _, change := range [][2]string{
		{"POST ", "GET "}, {" HTTP/1.1", " HTTP/1.0"}, {"/db/tbl", "/postback/v3/event/db/tbl"}, {"/db/tbl", "/db"}, {"/db/tbl", "/db/t?"}, {"/db/tbl", "//tbl"},
		{"Content-Length: ", "Content-Length: 1"}, {"Content-Length: ", "X-Length: "}, {"Authorization: TD1 ", "X-Authorization: TD1 "}, {"TD1 1234/", "TD1 a b/"}, {"\r\n", "\n"},
		{`{"events":`, `{"eventz":`}, {`{"time":7,"uuid":"` + testUUID + `"}`, strings.Repeat("7", len(`{"time":7,`+uuid+`}`))}, {`]}`, `],`}, {`]}`, `}}`}, {`"n":0`, `"n":\`},
	} {
		if changed := strings.Replace(want, change[0], change[1], 1); changed == want {
			t.Errorf("%q is not in it", change[0])
		} else if _, ok := ReadKeptBatch([]byte(changed)); ok {
			t.Errorf("%q is read", changed)
		}
	}
	if _, ok := ReadKeptBatch(keptPost(`{"events":[{}]}`, arrival, nil)); ok {
		t.Error("a Postback request is read")
	}
}

// TestKeptBatchOnly keeps what is left of a batch as a request of its own.
func TestKeptBatchOnly(t *testing.T) {
	records := func(texts ...string) (all [][]byte) {
		for _, text := range texts {
			all = append(all, []byte(text))
		}
		return all
	}
	whole := KeptBatch{BatchGroup{"db", "tbl", benchKey}, "v2.example:8443", records(`{"n":0}`, `{"n":1}`, `{"n":2}`)}
	for _, tc := range []struct {
		left []int
		want [][]byte
	}{
		{[]int{1}, records(`{"n":1}`)},
		{[]int{0, 2}, records(`{"n":0}`, `{"n":2}`)},
		{[]int{0, 1, 2}, whole.Records},
	} {
		data := whole.Append(nil)
		before := bytes.Clone(data)
		read, _ := ReadKeptBatch(data)
		read.Only(tc.left)
		rest := read.Append(nil)
		if got, ok := ReadKeptBatch(rest); !ok || !reflect.DeepEqual(got, KeptBatch{whole.BatchGroup, whole.Host, tc.want}) {
			t.Errorf("%v of it: %q, %v", tc.left, rest, ok)
		}
		if !bytes.Equal(data, before) {
			t.Errorf("%v of it: the whole has become %q", tc.left, data)
		}
	}
}

// TestKeptBatchOfPostback: a kept batch is told from a kept record also where the
// database has the name with which the paths of Postback begin. Its events go alone.
func TestKeptBatchOfPostback(t *testing.T) {
	for _, name := range []string{"postback", "Postback"} {
		k := readKeen(t, `{"`+name+`.v3":[{"#UUID":"`+testUUID+`","n":0}],"db.tbl":[{"n":0}],"`+name+`":[{}]}`)
		for i, alone := range []bool{true, false, false} {
			if k.Collections[i].Events[0].Alone != alone {
				t.Errorf("%s: %d: %+v", name, i, k.Collections[i])
			}
		}
		if got := string(k.Collections[0].Events[0].Record); got != `{"n":0}` {
			t.Errorf("%s: got %s", name, got)
		}
		batch := KeptBatch{BatchGroup{name, "v3", benchKey}, "v2", [][]byte{[]byte("{}")}}
		if got, ok := ReadKeptBatch(batch.Append(nil)); ok {
			t.Errorf("read as %q", got)
		}
	}
}

// FuzzKeptBatch reads what may be a kept batch also with net/http and encoding/json.
func FuzzKeptBatch(f *testing.F) {
	g := BatchGroup{"db", "tbl", benchKey}
	for _, records := range [][]string{{`{}`}, {`{"a":"]}{"}`, ` {"b":[{}]} `}, {`7`}, {}} {
		k := KeptBatch{BatchGroup: g, Host: "v2"}
		for _, record := range records {
			k.Records = append(k.Records, []byte(record))
		}
		f.Add(k.Append(nil))
	}
	f.Add([]byte("POST /db/tbl HTTP/1.1\r\nX-TD-Write-Key: 1/a\r\nContent-Length: 15\r\n\r\n" + `{"events":[{}]}`))
	f.Add(keptPost(`{"events":[{}]}`, time.Unix(testArrival, 0), nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, ok := ReadKeptBatch(data)
		if !ok {
			if !reflect.DeepEqual(k, KeptBatch{}) {
				t.Errorf("%q is read as %q", data, k)
			}
			return
		}
		g, records := k.BatchGroup, k.Records
		_, body, _ := bytes.Cut(data, []byte("\r\n\r\n"))
		var batch struct{ Events []json.RawMessage }
		if err := json.Unmarshal(body, &batch); err != nil || len(batch.Events) != len(records) {
			t.Fatalf("%q is read as %q, %v", body, records, err)
		}
		for i, record := range records {
			if string(record) != string(batch.Events[i]) || record[0] != '{' {
				t.Errorf("%q is read as %q", batch.Events[i], record)
			}
		}
		if named, ok := ParseBatchGroup(g.String()); !ok || named != g || KeptPayer(data) != payerOf(g.Key) {
			t.Errorf("%q is of %+v, and paid by %q", data, g, KeptPayer(data))
		}
		if again, ok := ReadKeptBatch(k.Append(nil)); !ok || !reflect.DeepEqual(again, k) {
			t.Errorf("%q is kept again as %q", k, again)
		}
		if _, record, ok := ToBatch(data, time.Unix(testArrival, 0), testUUIDBytes); ok {
			t.Errorf("%q is also the record %q of a batch", data, record)
		}
	})
}
