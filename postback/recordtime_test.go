package postback

import (
	"bytes"
	"cmp"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// testArrival is when the records of these tests came.
const testArrival = 1_800_000_000

func TestAppendRecordTime(t *testing.T) {
	nested := func(depth int) string {
		return strings.Repeat(`{"a":`, depth-1) + "{}" + strings.Repeat("}", depth-1)
	}
	for _, tc := range []struct {
		name, body string
		want       string // empty if the body goes as it is
		result     RecordTime
	}{
		{name: "one member", body: `{"a":1}`, want: `{"a":1,"td_record_time":1800000000}`},
		{name: "no member", body: `{}`, want: `{"td_record_time":1800000000}`},
		{name: "nothing but white space inside", body: "{ \t\r\n}", want: "{ \t\r\n\"td_record_time\":1800000000}"},
		{name: "white space before the brace and behind it", body: "{\"a\":1 }\n", want: "{\"a\":1 ,\"td_record_time\":1800000000}\n"},
		{name: "white space everywhere", body: "\r\n\t { \"a\" : [ 1 , 2 ] , \"b\" : { } \r\n} \t\r\n", want: "\r\n\t { \"a\" : [ 1 , 2 ] , \"b\" : { } \r\n,\"td_record_time\":1800000000} \t\r\n"},
		{name: "every kind of value", body: `{"a":"x","b":-1.5e+3,"c":true,"d":false,"e":null,"f":[],"g":{}}`, want: `{"a":"x","b":-1.5e+3,"c":true,"d":false,"e":null,"f":[],"g":{},"td_record_time":1800000000}`},
		{name: "a number that is none in Go", body: `{"a":1e999}`, want: `{"a":1e999,"td_record_time":1800000000}`},
		{name: "an empty name", body: `{"":1}`, want: `{"":1,"td_record_time":1800000000}`},
		{name: "a name twice", body: `{"a":1,"a":2}`, want: `{"a":1,"a":2,"td_record_time":1800000000}`},
		{name: "invalid UTF-8 in strings", body: "{\"\xff\":\"\xc3\"}", want: "{\"\xff\":\"\xc3\",\"td_record_time\":1800000000}"},
		{name: "half a surrogate", body: `{"\ud800":"\udc00"}`, want: `{"\ud800":"\udc00","td_record_time":1800000000}`},
		{name: "braces, quotes and names in a string", body: `{"a":"}\\\"{,\"time\":1\\"}`, want: `{"a":"}\\\"{,\"time\":1\\","td_record_time":1800000000}`},
		{name: "quotes and names in a name", body: `{"a\",\"time":1}`, want: `{"a\",\"time":1,"td_record_time":1800000000}`},
		{name: "the deepest nesting", body: nested(10_000), want: strings.TrimSuffix(nested(10_000), "}") + `,"td_record_time":1800000000}`},

		{name: "time as a value", body: `{"a":"time","b":["td_record_time","time"],"c":"td_record_time"}`, want: `{"a":"time","b":["td_record_time","time"],"c":"td_record_time","td_record_time":1800000000}`},
		{name: "time in an object inside", body: `{"a":{"time":1,"b":2,"td_record_time":1}}`, want: `{"a":{"time":1,"b":2,"td_record_time":1},"td_record_time":1800000000}`},
		{name: "time in an object in an array", body: `{"a":[{"time":1},{"td_record_time":1}],"b":1}`, want: `{"a":[{"time":1},{"td_record_time":1}],"b":1,"td_record_time":1800000000}`},
		{name: "time in another case", body: `{"Time":1,"TIME":2,"TD_RECORD_TIME":3,"td_Record_time":4}`, want: `{"Time":1,"TIME":2,"TD_RECORD_TIME":3,"td_Record_time":4,"td_record_time":1800000000}`},
		{name: "longer and shorter names", body: `{"timer":1,"tim":2,"td_record_tim":3,"td_record_time_":4,"atime":5,"td_time":6}`, want: `{"timer":1,"tim":2,"td_record_tim":3,"td_record_time_":4,"atime":5,"td_time":6,"td_record_time":1800000000}`},
		{name: "white space in the name", body: `{"time ":1," time":2,"ti\tme":3}`, want: `{"time ":1," time":2,"ti\tme":3,"td_record_time":1800000000}`},
		{name: "an escaped backslash before u", body: `{"t\\u0069me":1}`, want: `{"t\\u0069me":1,"td_record_time":1800000000}`},
		{name: "other escapes", body: `{"\u0054ime":1,"t\u0169me":2,"\t\u0069me":3,"tim\u0065\u0000":4,"t\u0131me":5}`, want: `{"\u0054ime":1,"t\u0169me":2,"\t\u0069me":3,"tim\u0065\u0000":4,"t\u0131me":5,"td_record_time":1800000000}`},

		{name: "td_record_time", body: `{"a":1,"td_record_time":1799999999}`, result: TimeOwn},
		{name: "time", body: `{"time":1799999999,"a":1}`, result: TimeOwn},
		{name: "seven days ago", body: `{"td_record_time":1799395200}`, result: TimeOwn},
		{name: "before that", body: `{"td_record_time":1799395199}`, result: TimeUnusable},
		{name: "three days ahead", body: `{"td_record_time":1800259200}`, result: TimeOwn},
		{name: "after that", body: `{"td_record_time":1800259201}`, result: TimeUnusable},
		{name: "the same of time", body: `{"time":1800259201}`, result: TimeUnusable},
		{name: "both can be used", body: `{"time":1799999998,"td_record_time":1799999999}`, result: TimeOwn},
		{name: "only td_record_time can be used", body: `{"time":null,"td_record_time":1799999999}`, result: TimeOwn},
		{name: "only time can be used", body: `{"time":1799999999,"td_record_time":null}`, result: TimeUnusable},
		{name: "twice, the last one can be used", body: `{"time":1,"time":1799999999}`, result: TimeOwn},
		{name: "twice, the first one can be used", body: `{"td_record_time":1799999999,"td_record_time":1}`, result: TimeUnusable},
		{name: "time with white space", body: "\n{ \"a\" : 1 , \"time\" \t:\r\n 1799999999 \n}\n", result: TimeOwn},
		{name: "time with one escape", body: `{"t\u0069me":1799999999}`, result: TimeOwn},
		{name: "time in escapes", body: `{"a":1,"\u0074\u0069\u006D\u0065":1799999999}`, result: TimeOwn},
		{name: "td_record_time in escapes", body: `{"td\u005Frecord\u005ftim\u0065":1799999999}`, result: TimeOwn},
		{name: "time behind values with everything", body: `{"a":{"b":[1,{"c":"]}"}]},"d":"\"","e":[[],{}],"time":1799999999}`, result: TimeOwn},
		{name: "time before them", body: `{"time":1799999999,"a":{"b":[1,{"c":"]}"}]},"d":"\"","e":[[],{}]}`, result: TimeOwn},
		{name: "time behind an escaped backslash", body: `{"a":"\\","time":1799999999}`, result: TimeOwn},

		{name: "null", body: `{"time":null}`, result: TimeUnusable},
		{name: "td_record_time, null", body: `{"td_record_time":null}`, result: TimeUnusable},
		{name: "empty string", body: `{"time":""}`, result: TimeUnusable},
		{name: "placeholder", body: `{"td_record_time":"%%TIMESTAMP%%"}`, result: TimeUnusable},
		{name: "milliseconds", body: `{"td_record_time":1799999999000}`, result: TimeUnusable},
		{name: "number in a string", body: `{"td_record_time":"1799999999"}`, result: TimeUnusable},
		{name: "date", body: `{"time":"2027-01-15T08:00:00Z"}`, result: TimeUnusable},
		{name: "fraction", body: `{"time":1799999999.5}`, result: TimeUnusable},
		{name: "exponent", body: `{"time":1.799999999e9}`, result: TimeUnusable},
		{name: "negative", body: `{"time":-1799999999}`, result: TimeUnusable},
		{name: "zero", body: `{"time":0}`, result: TimeUnusable},
		{name: "a hundred digits", body: `{"time":` + strings.Repeat("1", 100) + `}`, result: TimeUnusable},
		{name: "true", body: `{"time":true}`, result: TimeUnusable},
		{name: "object", body: `{"time":{"a":1}}`, result: TimeUnusable},
		{name: "array", body: `{"time":[1799999999]}`, result: TimeUnusable},
		{name: "empty array", body: `{"time":[]}`, result: TimeUnusable},

		{name: "empty", body: "", result: TimeNoObject},
		{name: "white space only", body: " \n", result: TimeNoObject},
		{name: "array", body: `[{"a":1}]`, result: TimeNoObject},
		{name: "string", body: `"{}"`, result: TimeNoObject},
		{name: "number", body: `1`, result: TimeNoObject},
		{name: "null", body: `null`, result: TimeNoObject},
		{name: "two objects", body: `{"a":1}{"b":2}`, result: TimeNoObject},
		{name: "two objects on lines", body: "{\"a\":1}\n{\"b\":2}\n", result: TimeNoObject},
		{name: "text behind the object", body: `{"a":1}x`, result: TimeNoObject},
		{name: "text before the object", body: `x{"a":1}`, result: TimeNoObject},
		{name: "a brace too many", body: `{"a":1}}`, result: TimeNoObject},
		{name: "trailing comma", body: `{"a":1,}`, result: TimeNoObject},
		{name: "comma only", body: `{,}`, result: TimeNoObject},
		{name: "comment", body: `{"a":1/*x*/}`, result: TimeNoObject},
		{name: "single quotes", body: `{'a':1}`, result: TimeNoObject},
		{name: "name without quotes", body: `{a:1}`, result: TimeNoObject},
		{name: "leading zero", body: `{"a":01}`, result: TimeNoObject},
		{name: "NaN", body: `{"a":NaN}`, result: TimeNoObject},
		{name: "control byte in a string", body: "{\"a\":\"\x01\"}", result: TimeNoObject},
		{name: "bad escape", body: `{"a":"\x41"}`, result: TimeNoObject},
		{name: "cut", body: `{"a":"x`, result: TimeNoObject},
		{name: "cut in an escape", body: `{"a":"\`, result: TimeNoObject},
		{name: "cut at the brace", body: `{"a":{}`, result: TimeNoObject},
		{name: "brace only", body: `{`, result: TimeNoObject},
		{name: "wrong brackets", body: `{"a":[}]`, result: TimeNoObject},
		{name: "byte order mark", body: "\ufeff{\"a\":1}", result: TimeNoObject},
		{name: "white space that is none in JSON", body: "\v{\"a\":1}", result: TimeNoObject},
		{name: "no-break space behind", body: "{\"a\":1}\u00a0", result: TimeNoObject},
		{name: "NUL behind", body: "{\"a\":1}\x00", result: TimeNoObject},
		{name: "UTF-16", body: "{\x00\"\x00a\x00\"\x00:\x001\x00}\x00", result: TimeNoObject},
		{name: "msgpack", body: "\x81\xa1a\x01", result: TimeNoObject},
		{name: "msgpack whose first byte is a brace", body: "{\xa1a\x01}", result: TimeNoObject},
		{name: "gzip", body: "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xabV\xaaR\xb2\xaa\x05\x00}", result: TimeNoObject},
		{name: "invalid, with a time", body: `{"time":1,}`, result: TimeNoObject},
		{name: "nested too deep", body: nested(10_001), result: TimeNoObject},
		{name: "hostile nesting", body: strings.Repeat(`{"a":`, 1<<20/5), result: TimeNoObject},
		{name: "hostile nesting, arrays", body: `{"a":` + strings.Repeat("[", 1<<20), result: TimeNoObject},
	} {
		if tc.result != TimeAdded {
			tc.want = tc.body
		}
		t.Run(tc.name, func(t *testing.T) {
			sent := []byte(tc.body)
			got, result := appendRecordTime([]byte("before"), sent, testArrival)
			if string(got) != "before"+tc.want || result != tc.result {
				t.Errorf("got  %.200q, %v\nwant %.200q, %v", got, result, "before"+tc.want, tc.result)
			}
			if string(sent) != tc.body {
				t.Errorf("the caller's body has become %.200q", sent)
			}
		})
	}
}

// appendRecordTime appends a body with its time, as AppendKept puts it into a
// request.
func appendRecordTime(dst, body []byte, arrival int64) ([]byte, RecordTime) {
	change := timeChangeOf(nil, body, time.Unix(arrival, 0), false)
	if change.timed != TimeAdded {
		return append(dst, body...), change.timed
	}
	return slices.Concat(dst, body[:change.from], change.text, body[change.to:]), change.timed
}

// TestQueryRecordTime: the gateway has made the record itself, so a time that v2
// cannot use gives way to the arrival.
func TestQueryRecordTime(t *testing.T) {
	for _, tc := range []struct {
		name, query, want string
		arrival           int64 // testArrival if 0
		timed             RecordTime
	}{
		{name: "no time", query: "a=1", want: `{"a":"1","td_record_time":1800000000}`},
		{name: "no column", query: "", want: `{"td_record_time":1800000000}`},
		{name: "its own", query: "td_record_time=1799999999", want: `{"td_record_time":1799999999}`, timed: TimeOwn},
		{name: "milliseconds", query: "a=1&td_record_time=1799999999000&b=2", want: `{"a":"1","td_record_time":1800000000,"b":"2"}`},
		{name: "empty", query: "td_record_time=&b=2", want: `{"td_record_time":1800000000,"b":"2"}`},
		{name: "placeholder", query: "a=1&td_record_time=%25%25TIMESTAMP%25%25", want: `{"a":"1","td_record_time":1800000000}`},
		{name: "too old", query: "td_record_time=1700000000", want: `{"td_record_time":1800000000}`},
		{name: "twice", query: "td_record_time=1799999999&td_record_time=1799999998", want: `{"td_record_time":1800000000}`},
		{name: "time is a column like others", query: "time=1799999999", want: `{"time":"1799999999","td_record_time":1800000000}`},
		{name: "time beside td_record_time", query: "time=x&td_record_time=1799999999", want: `{"time":"x","td_record_time":1799999999}`, timed: TimeOwn},
		{name: "a clock that is wrong", query: "a=1", arrival: 1_700_000_000, want: `{"a":"1"}`, timed: TimeUnusable},
		{name: "a clock that is wrong, and an empty time", query: "td_record_time=", arrival: 1_700_000_000, want: `{"td_record_time":""}`, timed: TimeUnusable},
		{name: "a clock that is wrong, and a time", query: "td_record_time=1799999999", arrival: 1_700_000_000, want: `{"td_record_time":1799999999}`, timed: TimeOwn},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rec := ReadQuery(nil, tc.query, Caller{}, MaxBody)
			q := Request{Host: "v2", Destination: Destination{"db", "tbl"}, Header: http.Header{"Content-Md5": {"x"}, "Content-Encoding": {"gzip"}}}
			q.UseRecord(rec.Body)
			data, timed := AppendKept(nil, &q, time.Unix(cmp.Or(tc.arrival, testArrival), 0))
			kept, err := ReadKept(data)
			if err != nil || string(kept.Body) != tc.want || timed != tc.timed {
				t.Errorf("got %s, %v, %v, want %s, %v", kept.Body, timed, err, tc.want, tc.timed)
			}
		})
	}
}

// TestWrongClock: a clock that cannot be right says nothing, neither of when a
// record came nor of when its own time would be too old.
func TestWrongClock(t *testing.T) {
	first := time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)
	for at, want := range map[time.Time]bool{
		{}: false, time.Unix(0, 0): false, first.Add(-time.Second): false, first: true, first.AddDate(50, 0, 0): true,
	} {
		if got := PlausibleTime(at); got != want {
			t.Errorf("%v: got %v", at, got)
		}
	}
	for body, want := range map[string]RecordTime{
		`{"a":1}`: TimeUnusable, `{"time":null}`: TimeUnusable, `{"time":1799999999000}`: TimeUnusable, `{"time":0}`: TimeUnusable,
		`{"time":1799999999}`: TimeOwn, `[]`: TimeNoObject,
	} {
		if got, timed := appendRecordTime(nil, []byte(body), 100); string(got) != body || timed != want {
			t.Errorf("%s: got %s, %v, want %v", body, got, timed, want)
		}
	}
}

// TestAppendRecordTimeMembers makes objects up and reads them with
// encoding/json, before and after.
func TestAppendRecordTimeMembers(t *testing.T) {
	var results [len(RecordTimeNames)]int
	for seed := range uint64(5000) {
		random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // G404: it makes objects up
		body := []byte(madeUpSpace(random) + madeUpObject(random, 0) + madeUpSpace(random))
		got, result := appendRecordTime(nil, body, testArrival)
		results[result]++
		want, names := membersOf(t, body)
		if own := ownTime(want, names, testArrival); result != own {
			t.Errorf("%q: %v, want %v", body, result, own)
		}
		if result == TimeAdded {
			names = append(names, "td_record_time")
			want["td_record_time"] = json.Number("1800000000")
		}
		if members, order := membersOf(t, got); !reflect.DeepEqual(members, want) || !slices.Equal(order, names) {
			t.Errorf("%q became %q", body, got)
		}
	}
	if results[TimeAdded] < 1000 || results[TimeOwn] < 100 || results[TimeUnusable] < 1000 || results[TimeNoObject] > 0 {
		t.Errorf("%v: %v", RecordTimeNames, results)
	}
}

// ownTime says by encoding/json whose time an object has. Of a name that comes
// twice, the last one counts there too.
func ownTime(members map[string]any, names []string, arrival int64) RecordTime {
	name := "td_record_time"
	if !slices.Contains(names, name) {
		if name = "time"; !slices.Contains(names, name) {
			return TimeAdded
		}
	}
	number, _ := members[name].(json.Number)
	if seconds, err := number.Int64(); err == nil && seconds >= arrival-7*24*3600 && seconds <= arrival+3*24*3600 {
		return TimeOwn
	}
	return TimeUnusable
}

// membersOf reads an object: its members, and their names in order.
func membersOf(t *testing.T, object []byte) (members map[string]any, names []string) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(object))
	d.UseNumber()
	if err := d.Decode(&members); err != nil {
		t.Fatalf("%q: %v", object, err)
	}
	_, names = decodeObject(t, object)
	return members, names
}

func madeUpObject(random *rand.Rand, depth int) string {
	names := []string{`"time"`, `"td_record_time"`, `"t\u0069me"`, `"td_record\u005Ftime"`, `"Time"`, `""`, `"a"`, `"b\"{"`, `"\\"`, `"é"`, `"timestamp"`, `"user"`, `"\ttime"`, `"c"`, `"d"`}
	members := make([]string, random.IntN(6))
	for i := range members {
		members[i] = madeUpSpace(random) + names[random.IntN(len(names))] + madeUpSpace(random) + ":" + madeUpValue(random, depth+1)
	}
	return "{" + strings.Join(members, ",") + madeUpSpace(random) + "}"
}

func madeUpValue(random *rand.Rand, depth int) string {
	plain := []string{`"time"`, `"\"time\":"`, `"}"`, `"\\"`, `""`, `"日本"`, `0`, `1799999999`, `1800000001`, `1799999999000`, `-1.5E+7`, `1e999`, `true`, `false`, `null`, `[]`, `{}`}
	value := plain[random.IntN(len(plain))]
	if depth < 4 {
		switch random.IntN(4) {
		case 0:
			value = madeUpObject(random, depth)
		case 1:
			value = "[" + madeUpValue(random, depth+1) + "," + madeUpValue(random, depth+1) + "]"
		}
	}
	return madeUpSpace(random) + value + madeUpSpace(random)
}

func madeUpSpace(random *rand.Rand) string {
	return []string{"", "", "", " ", "\n", "\r\n\t"}[random.IntN(6)]
}

// FuzzRecordTime compares with encoding/json, and takes out again what was
// added.
func FuzzRecordTime(f *testing.F) {
	for _, seed := range []string{
		`{"a":1}`, " { } \n", `{"t\u0069me":null}`, `{"a":{"time":1},"b":["td_record_time"]}`, `{"td\u005frecord\u005Ftime":1,"td_record_time":2}`, `{"a":"\\","a\"":1e999}`,
		`{"a":1,}`, `{}{}`, `[{"time":1}]`, "\ufeff{}", "{\"\xff\":\"\\ud800\"}", "", "{", `{"a":"\`, "null", "\x81\xa1a\x01", "\x1f\x8b\x08",
	} {
		f.Add([]byte(seed), int64(testArrival))
	}
	f.Fuzz(func(t *testing.T, body []byte, arrival int64) {
		arrival = testArrival + arrival&(1<<30-1)
		want := TimeNoObject
		var members map[string]any
		if decoder := json.NewDecoder(bytes.NewReader(body)); json.Valid(body) {
			decoder.UseNumber()
			if err := decoder.Decode(&members); err == nil && members != nil {
				_, names := decodeObject(t, body)
				want = ownTime(members, names, arrival)
			}
		}
		got, result := appendRecordTime([]byte("before"), body, arrival)
		if result != want {
			t.Errorf("%q: %v, want %v", body, result, want)
		}
		got, ok := bytes.CutPrefix(got, []byte("before"))
		if !ok || json.Valid(got) != json.Valid(body) {
			t.Errorf("%q became %q", body, got)
		}
		if want == TimeAdded {
			added := `"td_record_time":` + strconv.FormatInt(arrival, 10)
			if len(members) > 0 {
				added = "," + added
			}
			at := bytes.LastIndex(got, []byte(added))
			if _, names := decodeObject(t, got); at < 0 || names[len(names)-1] != "td_record_time" {
				t.Fatalf("%q became %q", body, got)
			}
			got = slices.Delete(got, at, at+len(added))
		}
		if !bytes.Equal(got, body) {
			t.Errorf("%q was %q", got, body)
		}
	})
}

// TestTimeIgnored: a time counts if v2 can use it now, and only the column itself is one.
func TestTimeIgnored(t *testing.T) {
	now := time.Date(2026, time.November, 20, 12, 0, 0, 0, time.UTC)
	for body, want := range map[string]bool{
		`{"a":1}`:                          false,
		`{"td_record_time":1795176000}`:    false,
		`{"td_record_time":1}`:             true,
		`{"td_record_time":1795176000000}`: true,
		`{"td_record_time":"1795176000"}`:  true,
		`{"td_record_time":null}`:          true,
		`{"x":{"td_record_time":1}}`:       false,
		`{"td_record_time":1`:              false,
		`["td_record_time"]`:               false,
		`{"a":"` + strings.Repeat("x", maxTimeLooked) + `","td_record_time":1}`: false,
	} {
		q := Request{Body: []byte(body)}
		if got := q.TimeIgnored(now); got != want {
			t.Errorf("%.60s: got %v", body, got)
		}
		if q.TimeIgnored(time.Time{}) {
			t.Errorf("%.60s: judged by a wrong clock", body)
		}
	}
	q := Request{Body: []byte(`{"td_record_time":1}`), Header: http.Header{"Content-Encoding": {"gzip"}}}
	if q.TimeIgnored(now) {
		t.Error("a compressed body is judged")
	}
}
