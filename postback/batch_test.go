package postback

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	testUUID     = "01234567-89ab-cdef-0123-456789abcdef"
	testUUIDPart = `"uuid":"` + testUUID + `"`
)

var testUUIDBytes = [16]byte{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}

// TestToBatch takes one request after the other the whole way: as a caller sends it,
// as it is kept, and as it is in a batch.
func TestToBatch(t *testing.T) {
	const timed = `,"time":1800000000,` + testUUIDPart + `}`
	const ownTime = `{"time":1800000000,` + testUUIDPart
	header := func(name string, values ...string) func(*Request) {
		return func(q *Request) { q.Header[name] = values }
	}
	columns := func(length int) string { return `{"a":"` + strings.Repeat("x", length-len(`{"a":""}`)) + `"}` }
	nested := func(depth int) string {
		return `{"a":` + strings.Repeat("[", depth-1) + strings.Repeat("]", depth-1) + "}"
	}
	const added = len(`,"time":1800000000,` + testUUIDPart)
	for _, tc := range []struct {
		name    string
		body    string // {"a":1} if empty
		change  func(*Request)
		arrival int64  // testArrival if 0
		want    string // empty if it goes alone
	}{
		{name: "no time", want: `{"a":1` + timed},
		{name: "no member", body: `{}`, want: ownTime + "}"},
		{name: "its own time", body: `{"time":1799999999,"a":1}`, want: `{"time":1799999999,"a":1,` + testUUIDPart + "}"},
		{name: "its own td_record_time", body: `{"a":1,"td_record_time":1799999999,"b":2}`, want: `{"a":1,"time":1799999999,"b":2,` + testUUIDPart + "}"},
		{name: "its own td_record_time in front", body: `{"td_record_time":1799999999,"b":2}`, want: `{"time":1799999999,"b":2,` + testUUIDPart + "}"},
		{name: "escapes in td_record_time", body: `{"td\u005frecord\u005Ftime":1799999999}`, want: `{"time":1799999999,` + testUUIDPart + "}"},
		{name: "escapes in time", body: `{"t\u0069me":1799999999}`, want: `{"t\u0069me":1799999999,` + testUUIDPart + "}"},
		{name: "white space", body: " {\n\"td_record_time\" : 1799999999\t,\r\n \"a\" : 1 } \n", want: " {\n\"time\" : 1799999999\t,\r\n \"a\" : 1 ," + testUUIDPart + "} \n"},
		{name: "white space alone", body: "{ \n}\n", want: "{ \n\"time\":1800000000," + testUUIDPart + "}\n"},
		{name: "times and UUIDs inside", body: `{"a":{"uuid":1,"time":2,"td_record_time":"x"},"b":[{"uuid":1}],"c":"uuid"}`, want: `{"a":{"uuid":1,"time":2,"td_record_time":"x"},"b":[{"uuid":1}],"c":"uuid"` + timed},
		{name: "names like them", body: `{"uuid_":1,"uuids":1,"timer":2,"_time":3,"":4}`, want: `{"uuid_":1,"uuids":1,"timer":2,"_time":3,"":4` + timed},
		{name: "a name twice", body: `{"a":1,"a":2}`, want: `{"a":1,"a":2` + timed},
		{name: "quotes and brackets in strings", body: `{"a\"}":"{[\\","b":"\\\""}`, want: `{"a\"}":"{[\\","b":"\\\""` + timed},
		{name: "numbers as they are", body: `{"a":12345678901234567890.10,"b":1e999}`, want: `{"a":12345678901234567890.10,"b":1e999` + timed},
		{name: "characters", body: `{"é":"😀\ud83d\ude00"}`, want: `{"é":"😀\ud83d\ude00"` + timed},
		{name: "a byte-order mark", body: "\ufeff{\"a\":1}", want: `{"a":1` + timed},
		{name: "a record of a query", change: func(q *Request) { q.UseRecord([]byte(`{"a":"1"}`)) }, want: `{"a":"1"` + timed},
		{name: "headers that do not matter", change: func(q *Request) {
			q.Header = http.Header{"User-Agent": {"x"}, "Accept": {"*/*"}, "Content-Encoding": {"identity"}, "Content-Type": {"text/plain"}, "Content-Language": {"de"}, "Origin": {"null"}, "X-Hub-Signature-256": {"x"}}
		}, want: `{"a":1` + timed},
		{name: "a digest for one hop alone", change: func(q *Request) { q.Header = http.Header{"Digest": {"x"}, "Connection": {"digest"}} }, want: `{"a":1,` + testUUIDPart + "}"},
		{name: "JSON in UTF-8", change: header("Content-Type", `application/JSON ;v=1; CharSet="UTF-8"`), want: `{"a":1` + timed},
		{name: "JSON in ASCII", change: header("Content-Type", "application/json;charset=us-ascii"), want: `{"a":1` + timed},
		{name: "no time, since the clock is wrong", arrival: 1_000_000_000, want: `{"a":1,` + testUUIDPart + "}"},
		{name: "its own time, and a clock that is wrong", body: `{"time":1799999999}`, arrival: 1_000_000_000, want: `{"time":1799999999,` + testUUIDPart + "}"},
		{name: "as old as can be", body: `{"time":1799395200}`, want: `{"time":1799395200,` + testUUIDPart + "}"},
		{name: "as far ahead as can be", body: `{"td_record_time":1800259200}`, want: `{"time":1800259200,` + testUUIDPart + "}"},
		{name: "as large as can be", body: columns(MaxBatchRecord - added), want: strings.TrimSuffix(columns(MaxBatchRecord-added), "}") + timed},
		{name: "nested as deeply as can be", body: nested(maxNesting), want: strings.TrimSuffix(nested(maxNesting), "}") + timed},
		{name: "both keys", change: func(q *Request) { q.Credentials = Credentials{WriteKey: "99/other", Authorization: "TD1 " + benchKey} }, want: `{"a":1` + timed},

		{name: "a byte too large", body: columns(MaxBatchRecord - added + 1)},
		{name: "as large as Postback takes", body: columns(MaxBody)},
		{name: "nested too deeply", body: nested(maxNesting + 1)},
		{name: "nested too deeply, objects", body: strings.Repeat(`{"a":`, maxNesting+1) + "1" + strings.Repeat("}", maxNesting+1)},
		{name: "nested too deeply, and then less", body: strings.TrimSuffix(nested(maxNesting+1), "}") + `,"b":[]}`},
		{name: "an array", body: `[{"a":1}]`},
		{name: "a string", body: `"a"`},
		{name: "no JSON", body: `{"a":1`},
		{name: "two objects", body: `{"a":1}{"a":1}`},
		{name: "two records", body: "{\"a\":1}\n{\"a\":1}\n"},
		{name: "another record behind it", body: `{"a":1},{"a":1}`},
		{name: "what would end the batch", body: `{"a":1}]}`},
		{name: "nothing", body: " "},
		{name: "no UTF-8", body: "{\"a\":\"\xff\"}"},
		{name: "no UTF-8 in a name", body: "{\"\xed\xa0\xbd\":1}"},
		{name: "Latin-1", body: "{\"a\":\"Caf\xe9\"}"},
		{name: "UTF-16", body: "{\x00}\x00"},
		{name: "uuid", body: `{"uuid":"x"}`},
		{name: "uuid, null", body: `{"a":1,"uuid":null}`},
		{name: "uuid in another case", body: `{"a":1,"UuId":1}`},
		{name: "uuid with escapes", body: `{"\u0075uid":1}`},
		{name: "uuid in another case with escapes", body: `{"\u0055U\u0049\u0064":1}`},
		{name: "time and td_record_time", body: `{"time":1799999999,"td_record_time":1799999999}`},
		{name: "td_record_time and time", body: `{"td_record_time":1799999999,"a":1,"time":1799999999}`},
		{name: "time twice", body: `{"time":1799999999,"time":1799999999}`},
		{name: "td_record_time twice", body: `{"td_record_time":1799999999,"td_record_time":1799999999}`},
		{name: "td_record_time twice, spelled in two ways", body: `{"td_record_time":1799999999,"td_record\u005ftime":1799999999}`},
		{name: "time in another case beside td_record_time", body: `{"Time":"noon","td_record_time":1799999999}`},
		{name: "time in another case beside the arrival", body: `{"TIME":1799999999}`},
		{name: "td_record_time in another case beside the arrival", body: `{"TD_Record_Time":1799999999}`},
		{name: "time in another case alone", body: `{"TIME":1799999999}`, arrival: 1_000_000_000},
		{name: "td_record_time in another case alone", body: `{"TD_\u0052ECORD_TIME":1799999999}`, arrival: 1_000_000_000},
		{name: "a column time of a query", change: func(q *Request) { q.UseRecord([]byte(`{"time":"1799999999"}`)) }},
		{name: "time is null", body: `{"time":null}`},
		{name: "time is a string", body: `{"time":"1799999999"}`},
		{name: "time in milliseconds", body: `{"time":1799999999000}`},
		{name: "time with a fraction", body: `{"time":1799999999.5}`},
		{name: "time with an exponent", body: `{"time":1.8e9}`},
		{name: "time is an object", body: `{"td_record_time":{"time":1799999999}}`},
		{name: "too old", body: `{"time":1799395199}`},
		{name: "too far ahead", body: `{"td_record_time":1800259201}`},
		{name: "a time before any clock, and a clock that is wrong", body: `{"time":1000000000}`, arrival: 1_000_000_000},
		{name: "a query", change: func(q *Request) { q.Query = "a=1" }},
		{name: "gzip", change: header("Content-Encoding", "gzip")},
		{name: "gzip among others", change: header("Content-Encoding", "identity", "identity, GZIP")},
		{name: "another charset", change: header("Content-Type", "application/json; charset=Shift_JIS")},
		{name: "another type", change: header("Content-Type", "application/xml")},
		{name: "a type that is not JSON's", change: header("Content-Type", "application/x-ndjson")},
		{name: "no key", change: func(q *Request) { q.Credentials = Credentials{} }},
		{name: "a database like the path of Postback", change: func(q *Request) { q.Destination = Destination{"postback", "v3"} }},
		{name: "a key with a space", change: func(q *Request) { q.Credentials.WriteKey = "1/a b" }},
		{name: "a key with a fragment", change: func(q *Request) { q.Credentials.WriteKey = "1/a#b" }},
		{name: "a key with a parameter", change: func(q *Request) { q.Credentials.WriteKey = "realm=a" }},
		{name: "a key with a semicolon", change: func(q *Request) { q.Credentials.WriteKey = "1/a;b" }},
		{name: "a key with a quote", change: func(q *Request) { q.Credentials.WriteKey = `"1/a"` }},
		{name: "a key with a comma", change: func(q *Request) { q.Credentials.WriteKey = "1/a,1/b" }},
		{name: "a key with other characters", change: func(q *Request) { q.Credentials.WriteKey = "1/é" }},
		{name: "a key without its secret", change: func(q *Request) { q.Credentials.WriteKey = "1/" }},
		{name: "a key that is too long", change: func(q *Request) { q.Credentials.WriteKey = strings.Repeat("a", maxWriteKey+1) }},
		{name: "a good key that v2 does not use", change: func(q *Request) { q.Credentials.Authorization = "TD1 a b" }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			arrival := time.Unix(cmp.Or(tc.arrival, testArrival), 999_999_999)
			data := keptPost(cmp.Or(tc.body, `{"a":1}`), arrival, tc.change)
			before := bytes.Clone(data)
			g, record, ok := ToBatch(data, arrival, testUUIDBytes)
			if string(record) != tc.want || ok != (tc.want != "") {
				t.Errorf("got %.300q, %v, want %.300q", record, ok, tc.want)
			}
			if want := (BatchGroup{"db", "tbl", benchKey}); ok && g != want || !ok && g != (BatchGroup{}) {
				t.Errorf("its group is %q", g)
			}
			if !bytes.Equal(data, before) {
				t.Error("what was kept has changed")
			}
		})
	}
	for _, name := range bytesHeaders {
		t.Run("the header "+name, func(t *testing.T) {
			data := keptPost(`{"a":1}`, time.Unix(testArrival, 0), header(name, "x"))
			if _, record, ok := ToBatch(data, time.Unix(testArrival, 0), testUUIDBytes); ok {
				t.Errorf("got %q", record)
			}
			if !bytes.HasSuffix(data, []byte("\r\n\r\n"+`{"a":1}`)) {
				t.Errorf("kept as %q", data)
			}
		})
	}
}

// keptPost keeps a POST as the handler does.
func keptPost(body string, arrival time.Time, change func(*Request)) []byte {
	q := Request{Host: "v2", Destination: Destination{"db", "tbl"}, Header: http.Header{}, Credentials: Credentials{WriteKey: benchKey}}
	if change != nil {
		change(&q)
	}
	if !q.FromQuery {
		q.UseBody([]byte(body), nil)
	}
	data, _ := AppendKept(nil, &q, arrival)
	return data
}

// TestToBatchDamaged cuts and changes what was kept.
func TestToBatchDamaged(t *testing.T) {
	arrival := time.Unix(testArrival, 0)
	good := keptPost(`{"a":1}`, arrival, nil)
	if _, _, ok := ToBatch(good, arrival, testUUIDBytes); !ok {
		t.Fatal("it goes alone")
	}
	for end := range good {
		if _, record, ok := ToBatch(good[:end], arrival, testUUIDBytes); ok {
			t.Errorf("%q has become %q", good[:end], record)
		}
	}
	for _, change := range [][2]string{
		{"POST ", "GET "},
		{"POST ", "post "},
		{"HTTP/1.1", "HTTP/1.0"},
		{" HTTP/1.1", ""},
		{"/postback/v3/", "/js/v3/"},
		{"/postback/v3/event/db/tbl", "/db/tbl"},
		{"/db/tbl", "/db/tbl/"},
		{"/db/tbl", "/db/tbl/more"},
		{"/db/tbl", "/db/"},
		{"/db/tbl", "/db"},
		{"/db/tbl", "//tbl"},
		{"/db/tbl", "/db/t%62l"},
		{"/db/tbl", "/db/tbl?"},
		{"/db/tbl", "/d b/tbl"},
		{"Content-Length: ", "Content-Length: 1"},
		{"Content-Length: ", "Content-Length: x"},
		{"Content-Length: ", "X-Length: "},
		{"\r\n", "\n"},
		{`{"a"`, `{"a" `},
	} {
		data := strings.ReplaceAll(string(good), change[0], change[1])
		if _, record, ok := ToBatch([]byte(data), arrival, testUUIDBytes); ok || data == string(good) {
			t.Errorf("%q has become %q", data, record)
		}
	}
}

// TestToBatchKey: v2 prefers Authorization, wherever it stands.
func TestToBatchKey(t *testing.T) {
	const header, td1 = WriteKeyHeader + ": 99/other\r\n", "Authorization: TD1 " + benchKey + "\r\n"
	arrival := time.Unix(testArrival, 0)
	good := keptPost(`{"a":1}`, arrival, nil)
	for _, keys := range []string{header + td1, td1 + header, td1} {
		data := strings.Replace(string(good), WriteKeyHeader+": "+benchKey+"\r\n", keys, 1)
		if g, _, ok := ToBatch([]byte(data), arrival, testUUIDBytes); !ok || g.Key != benchKey || KeptPayer([]byte(data)) != "1234" {
			t.Errorf("%q: got %+v, %v", keys, g, ok)
		}
	}
}

// TestToBatchLater: what a record is in a batch depends on when it came, not on when
// it is asked for.
func TestToBatchLater(t *testing.T) {
	arrival := time.Unix(testArrival, 0)
	for body, want := range map[string]bool{`{"time":1799500000}`: true, `{"time":1799000000}`: false} {
		if _, _, ok := ToBatch(keptPost(body, arrival, nil), arrival, testUUIDBytes); ok != want {
			t.Errorf("%s: %v", body, ok)
		}
	}
}

// TestRecordUUID compares with Python's uuid.uuid5, and looks for two records that
// share a UUID.
func TestRecordUUID(t *testing.T) {
	namespace := [16]byte{0x6b, 0xa7, 0xb8, 0x11, 0x9d, 0xad, 0x11, 0xd1, 0x80, 0xb4, 0x00, 0xc0, 0x4f, 0xd4, 0x30, 0xc8} // of URLs
	for id, want := range map[uint64]string{
		0: "0a5169d6-ba17-5d7c-8b8b-7764ffa3f06d", 1: "250e9165-cc3d-5131-98fb-598965f641b6", 1<<64 - 1: "cb9d10f5-065d-593f-b1af-9e2e5694cee3",
	} {
		if got := string(appendUUID(nil, RecordUUID(namespace, id))); got != want {
			t.Errorf("%d: got %s, want %s", id, got, want)
		}
	}
	form := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	seen := map[[16]byte]bool{}
	for first := range byte(10) {
		for id := range uint64(1000) {
			namespace[0] = first
			uuid := RecordUUID(namespace, id)
			if text := string(appendUUID(nil, uuid)); !form.MatchString(text) || seen[uuid] {
				t.Fatalf("%d of %x: %s, seen %v", id, namespace, text, seen[uuid])
			}
			seen[uuid] = true
		}
	}
}

// TestBatchGroup reads names of groups, and what is none.
func TestBatchGroup(t *testing.T) {
	for text, want := range map[string]BatchGroup{
		"db/tbl " + benchKey: {"db", "tbl", benchKey},
		"D_1/2 a/b==":        {"D_1", "2", "a/b=="},
		"db/tbl 1/a b":       {}, "db/tbl ": {}, "db/tbl": {}, "db 1/a": {}, "/tbl 1/a": {}, "db/ 1/a": {}, "db/t/x 1/a": {}, "d-b/tbl 1/a": {},
		"db/tbl 1/a\r\nX: y": {}, "db/tbl 1/": {}, "db/tbl =": {}, "": {}, " ": {}, "/ ": {},
	} {
		got, ok := ParseBatchGroup(text)
		if ok != (want != BatchGroup{}) || ok && (got != want || got.String() != text) {
			t.Errorf("%q: got %+v, %v", text, got, ok)
		}
	}
}

// TestBatchHead reads the head of a batch with net/http.
func TestBatchHead(t *testing.T) {
	g := BatchGroup{"db", "tbl", benchKey}
	head := g.AppendHead([]byte("before"), "us01.records.in.treasuredata.com", 7)
	head, ok := bytes.CutPrefix(head, []byte("before"))
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(append(head, "1234567"...))))
	if !ok || err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	const media = "application/vnd.treasuredata.v1+json"
	want := http.Header{"Authorization": {"TD1 " + benchKey}, "Content-Type": {media}, "Accept": {media}, "Content-Encoding": {"gzip"}, "Content-Length": {"7"}}
	if r.Method != "POST" || r.RequestURI != "/db/tbl" || r.Host != "us01.records.in.treasuredata.com" || !reflect.DeepEqual(r.Header, want) {
		t.Errorf("got %s %s at %s, %q", r.Method, r.RequestURI, r.Host, r.Header)
	}
	if body, err := io.ReadAll(r.Body); err != nil || string(body) != "1234567" {
		t.Errorf("its body is %q, %v", body, err)
	}
}

// FuzzBatch takes two records the whole way into a batch, and reads it with
// encoding/json. A second set of rules, on what that reads, says which must be in it.
func FuzzBatch(f *testing.F) {
	const types = "application/json"
	for _, seed := range []string{
		`{"a":1}`, " { } \n", `{"t\u0069me":1799999999}`, `{"td\u005frecord_time":1799999999,"b":[{"uuid":1}]}`, `{"UU\u0049D":1}`, `{"Time":1}`, `{"td_record_time":1,"time":2}`,
		`{"a":1}]}`, `{"a":1},{"b":2}`, "{\"\xff\":1}", `{"a":"\\","a\"":1e999}`, `[{}]`, `{"a":[[[{"b":{}}]]],"time":1800259200}`, "\ufeff{}", "\x1f\x8b",
	} {
		f.Add([]byte(seed), []byte(`{"b":"é"}`), types, benchKey, "", "", uint8(0), int64(testArrival))
		f.Add([]byte(seed), []byte(seed), "text/plain;charset=utf-8", "", "1/abc", "a=1", uint8(3), int64(0))
	}
	f.Fuzz(func(t *testing.T, first, second []byte, contentType, key, token, query string, fields uint8, seconds int64) {
		if keyProblem(key) != "" || keyProblem(token) != "" || len(first)+len(second) > MaxBody/2 || !isHeaderValue(contentType) {
			return // no call that is kept
		}
		arrival := time.Unix(seconds&(1<<32-1), 0)
		var records, bodies [][]byte
		for i, body := range [][]byte{first, second} {
			q := Request{Host: "v2", Destination: Destination{"db", "tbl"}, Query: query, Header: http.Header{"Content-Type": {contentType}}, Credentials: Credentials{WriteKey: key}}
			if token != "" {
				q.Credentials.Authorization = "TD1 " + token
			}
			for n, field := range []string{"Digest", "Content-Md5", "Signature"} {
				if fields>>n&1 == 1 {
					q.Header[field] = []string{"x"}
				}
			}
			if q.UseBody(body, nil); fields&8 == 8 {
				q.Header["Content-Encoding"] = []string{"identity, br"}
			}
			data, _ := AppendKept(nil, &q, arrival)
			kept, err := ReadKept(data)
			if err != nil {
				t.Fatal(err)
			}
			uuid := RecordUUID(testUUIDBytes, uint64(i))
			g, record, ok := ToBatch(data, arrival, uuid)
			if want := maySharedBy(kept, arrival); ok != want {
				t.Fatalf("in a batch: %v, want %v: %q", ok, want, data)
			}
			if !ok {
				continue
			}
			if want := (BatchGroup{"db", "tbl", q.Credentials.Key()}); g != want {
				t.Errorf("%q is of the group %+v", data, g)
			}
			if again, ok := ParseBatchGroup(g.String()); !ok || again != g {
				t.Errorf("%+v is read as %+v, %v", g, again, ok)
			}
			checkBatchRecord(t, kept.Body, record, string(appendUUID(nil, uuid)))
			records, bodies = append(records, record), append(bodies, kept.Body)
		}
		var batch struct{ Events []json.RawMessage }
		text := `{"events":[` + string(bytes.Join(records, []byte(","))) + "]}"
		if err := json.Unmarshal([]byte(text), &batch); err != nil || len(batch.Events) != len(bodies) {
			t.Fatalf("%v: %q", err, text)
		}
		for i, event := range batch.Events {
			if !bytes.Equal(event, bytes.Trim(records[i], jsonSpace)) {
				t.Errorf("%q is in the batch as %q", bodies[i], event)
			}
		}
	})
}

func isHeaderValue(value string) bool {
	return !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// maySharedBy says by net/http and encoding/json whether a request that was kept may
// share a request with others.
func maySharedBy(kept Kept, arrival time.Time) bool {
	members, ok := readMembers(kept.Body)
	key := kept.Credentials.Key()
	if !ok || kept.Query != "" || !regexp.MustCompile(`^[-A-Za-z0-9._~+/]+=*$`).MatchString(key) || strings.HasSuffix(strings.TrimRight(key, "="), "/") {
		return false
	}
	for _, name := range []string{"Digest", "Content-Md5", "Signature"} {
		if kept.Header.Get(name) != "" {
			return false
		}
	}
	if strings.Contains(kept.Header.Get("Content-Encoding"), "br") || !isJSONType(kept.Header.Get("Content-Type")) {
		return false
	}
	times := 0
	for _, m := range members {
		switch name := strings.ToLower(m.name); {
		case len(m.name) != len(name): // the capital İ and others become ASCII
		case name == "uuid":
			return false
		case name == "time", name == "td_record_time":
			if number, _ := m.value.(json.Number); name != m.name || ownTime(map[string]any{"time": number}, []string{"time"}, arrival.Unix()) != TimeOwn && PlausibleTime(arrival) {
				return false
			} else if seconds, err := number.Int64(); err != nil || !PlausibleTime(arrival) && seconds < firstTime.Unix() {
				return false
			}
			times++
		}
		if depthOf(m.value) >= maxNesting {
			return false
		}
	}
	return times <= 1 && len(kept.Body) < MaxBatchRecord-100
}

// objectMember is a member as encoding/json reads it.
type objectMember struct {
	name  string
	value any
}

// readMembers reads the members of an object in their order. It returns false if the
// text is not one object in UTF-8.
func readMembers(text []byte) (members []objectMember, ok bool) {
	if !json.Valid(text) || !bytes.Equal(text, bytes.ToValidUTF8(text, nil)) {
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if token, err := d.Token(); err != nil || token != json.Delim('{') {
		return nil, false
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, false
		}
		var value any
		if err := d.Decode(&value); err != nil {
			return nil, false
		}
		members = append(members, objectMember{name.(string), value})
	}
	return members, true
}

// depthOf is how many brackets are open at a time in a value.
func depthOf(value any) (depth int) {
	switch value := value.(type) {
	case map[string]any:
		for _, inside := range value {
			depth = max(depth, depthOf(inside))
		}
		return depth + 1
	case []any:
		for _, inside := range value {
			depth = max(depth, depthOf(inside))
		}
		return depth + 1
	}
	return 0
}

// checkBatchRecord compares a record of a batch with the body that it was made of:
// their members, and their bytes.
func checkBatchRecord(t *testing.T, body, record []byte, uuid string) {
	t.Helper()
	want, _ := readMembers(body)
	got, ok := readMembers(record)
	renamed := slices.IndexFunc(want, func(m objectMember) bool { return m.name == "td_record_time" })
	if renamed >= 0 {
		want[renamed].name = "time"
	}
	member := `"uuid":"` + uuid + `"`
	if len(want) > 0 {
		member = "," + member
	}
	if want = append(want, objectMember{"uuid", uuid}); !ok || !reflect.DeepEqual(got, want) {
		t.Fatalf("%q has become %q", body, record)
	}
	at := bytes.LastIndex(record, []byte(member))
	rest := slices.Concat(record[:at], record[at+len(member):])
	if renamed < 0 {
		if !bytes.Equal(rest, body) {
			t.Errorf("%q has become %q", body, record)
		}
		return
	}
	grown := len(body) - len(rest) + len("time")
	for i := range rest {
		if i+1+grown < len(body) && bytes.HasPrefix(rest[i:], []byte(`"time"`)) {
			var name string
			isName := json.Unmarshal(body[i:i+grown+len(`""`)], &name) == nil && name == "td_record_time"
			if isName && bytes.Equal(body, slices.Concat(rest[:i], body[i:i+grown+len(`""`)], rest[i+len(`"time"`):])) {
				return
			}
		}
	}
	t.Errorf("%q has become %q", body, record)
}

// TestReadReceipts reads what v2 may answer to a batch.
func TestReadReceipts(t *testing.T) {
	const secret = "0123456789abcdef0123456789abcdef01234567"
	refused := func(members string) []BatchReceipt { return []BatchReceipt{{Words: members}} }
	for _, tc := range []struct {
		name, answer string
		want         []BatchReceipt // nil for none
	}{
		{"taken", `{"receipts":[{"success":true,"uuid":"x"}]}`, []BatchReceipt{{Taken: true}}},
		{"some taken", ` {"receipts":[{"success":true},{"success":false},{"success":true,"error":"x"}],"more":1} `, []BatchReceipt{{Taken: true}, {}, {Taken: true}}},
		{"an error", `{"receipts":[{"success":false,"error":"bad time"}]}`, refused("bad time")},
		{"an error with a message", `{"receipts":[{"success":false,"error":{"code":7,"message":"bad time"}}]}`, refused("bad time")},
		{"an error with a reason", `{"receipts":[{"success":false,"error":{"reason":"bad time","name":"x"}}]}`, refused("bad time")},
		{"an error as Keen has them", `{"receipts":[{"success":false,"error":{"name":"InvalidPropertyValueError","description":"too large"}}]}`, refused("too large")},
		{"an error with a name", `{"receipts":[{"success":false,"error":{"name":"InvalidPropertyValueError"}}]}`, refused("InvalidPropertyValueError")},
		{"an error with a code", `{"receipts":[{"success":false,"error":{"code":"E7"}}]}`, refused("E7")},
		{"a message", `{"receipts":[{"success":false,"message":"bad time"}]}`, refused("bad time")},
		{"a reason", `{"receipts":[{"success":false,"reason":"bad time","error":null}]}`, refused("bad time")},
		{"another error", `{"receipts":[{"success":false,"error":["a",{"b":1}]}]}`, refused(`["a",{"b":1}]`)},
		{"a number", `{"receipts":[{"success":false,"error":422}]}`, refused("422")},
		{"nothing said", `{"receipts":[{"success":false,"error":{}}]}`, refused("{}")},
		{"an empty error", `{"receipts":[{"success":false,"error":"","message":"m"}]}`, refused("m")},
		{"lines", `{"receipts":[{"success":false,"error":"a\r\n\u0000b"}]}`, refused("a b")},
		{"long", `{"receipts":[{"success":false,"error":"` + strings.Repeat("x", 300) + `"}]}`, refused(strings.Repeat("x", MaxWords))},
		{"a key", `{"receipts":[{"success":false,"error":"key 1234/` + secret + ` or 99/` + secret + `"}]}`, refused("key 1234/… or 99/…")},
		{"an escaped key", `{"receipts":[{"success":false,"error":"key 1234\/\u0030` + secret[1:] + `"}]}`, refused("key 1234/…")},
		{"an odd key", `{"receipts":[{"success":false,"error":{"x":"odd.key~"}}]}`, refused(`{"x":"…"}`)},
		{"no JSON", `{"receipts":[{"success":true}`, nil},
		{"more behind it", `{"receipts":[{"success":true}]}{}`, nil},
		{"nothing", ``, nil},
		{"Postback's", `{}`, nil},
		{"no receipt", `{"receipts":[]}`, nil},
		{"no array", `{"receipts":{"success":true}}`, nil},
		{"not an object", `[{"success":true}]`, nil},
		{"null", `null`, nil},
		{"null for a receipt", `{"receipts":[null]}`, nil},
		{"no success", `{"receipts":[{"uuid":"x"}]}`, nil},
		{"success is null", `{"receipts":[{"success":null}]}`, nil},
		{"success is a string", `{"receipts":[{"success":"true"}]}`, nil},
		{"success is a number", `{"receipts":[{"success":1}]}`, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := max(len(tc.want), 1)
			got, ok := ReadReceipts([]byte(tc.answer), n, "1234/"+secret, "odd.key~")
			if ok != (tc.want != nil) || !slices.Equal(got, tc.want) {
				t.Errorf("got %+v, %v, want %+v", got, ok, tc.want)
			}
			for _, other := range []int{0, n - 1, n + 1} {
				if got, ok := ReadReceipts([]byte(tc.answer), other); ok || got != nil {
					t.Errorf("for %d records: got %+v", other, got)
				}
			}
		})
	}
}

// FuzzReceipts compares with encoding/json, and looks for the key.
func FuzzReceipts(f *testing.F) {
	for _, seed := range []string{
		`{"receipts":[{"success":true,"uuid":"x"}]}`, `{"receipts":[{"success":true},{"success":false,"error":{"message":"odd.key~"}}]}`,
		`{"receipts":[{"success":false,"error":"o\u0064d.key~ 1234/0123456789abcdef"}]}`, `{"Receipts":[null]}`, `{}`, `[`,
	} {
		f.Add([]byte(seed), 1)
		f.Add([]byte(seed), 2)
	}
	f.Fuzz(func(t *testing.T, answer []byte, n int) {
		receipts, ok := ReadReceipts(answer, n, "odd.key~")
		if ok != (receipts != nil) || ok && len(receipts) != n {
			t.Fatalf("got %d receipts for %d records, %v", len(receipts), n, ok)
		}
		var said struct {
			Receipts []map[string]any `json:"receipts"`
		}
		if err := json.Unmarshal(answer, &said); ok && (err != nil || len(said.Receipts) != n) {
			t.Fatalf("%q has %d receipts, %v", answer, len(said.Receipts), err)
		}
		lower := bytes.ToLower(answer)
		once := bytes.Count(lower, []byte("success")) == n && !bytes.Contains(lower, []byte(`\u`)) // a map has Success too
		for i, receipt := range receipts {
			if success, is := said.Receipts[i]["success"].(bool); once && is && success != receipt.Taken {
				t.Errorf("receipt %d of %q is read as %v", i, answer, receipt.Taken)
			}
			if len(receipt.Words) > MaxWords || strings.ContainsAny(receipt.Words, "\r\n") || strings.Contains(receipt.Words, "odd.key") || receipt.Taken && receipt.Words != "" {
				t.Errorf("receipt %d of %q says %q", i, answer, receipt.Words)
			}
		}
	})
}

func BenchmarkToBatch(b *testing.B) {
	arrival := time.Unix(testArrival, 0)
	for name, body := range benchBodies {
		data := keptPost(string(body), arrival, func(q *Request) {
			q.Host, q.Header = "us01.records.in.treasuredata.com", benchHeader
			q.Forwarded = Forwarded{ClientIP: "192.0.2.7", Proto: "https", Host: "in.treasuredata.com", Via: "1.1 Caddy"}
		})
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, ok := ToBatch(data, arrival, testUUIDBytes); !ok {
					b.Fatal("it goes alone")
				}
			}
		})
	}
}

func BenchmarkReadReceipts(b *testing.B) {
	one := fmt.Sprintf(`{"success":true,"uuid":%q},`, testUUID)
	answer := []byte(`{"receipts":[` + strings.TrimSuffix(strings.Repeat(one, MaxBatch), ",") + "]}")
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := ReadReceipts(answer, MaxBatch); !ok {
			b.Fatal("no receipts")
		}
	}
}
