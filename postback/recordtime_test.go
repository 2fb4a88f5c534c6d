package postback

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestAppendRecordTime(t *testing.T) {
	nested := func(depth int) string {
		return strings.Repeat(`{"a":`, depth-1) + "{}" + strings.Repeat("}", depth-1)
	}
	for _, tc := range []struct {
		name, body string
		want       string // empty if the body goes as it is
		result     RecordTime
	}{
		{name: "one member", body: `{"a":1}`, want: `{"a":1,"td_record_time":1700000000}`},
		{name: "no member", body: `{}`, want: `{"td_record_time":1700000000}`},
		{name: "nothing but white space inside", body: "{ \t\r\n}", want: "{ \t\r\n\"td_record_time\":1700000000}"},
		{name: "white space before the brace and behind it", body: "{\"a\":1 }\n", want: "{\"a\":1 ,\"td_record_time\":1700000000}\n"},
		{name: "white space everywhere", body: "\r\n\t { \"a\" : [ 1 , 2 ] , \"b\" : { } \r\n} \t\r\n", want: "\r\n\t { \"a\" : [ 1 , 2 ] , \"b\" : { } \r\n,\"td_record_time\":1700000000} \t\r\n"},
		{name: "every kind of value", body: `{"a":"x","b":-1.5e+3,"c":true,"d":false,"e":null,"f":[],"g":{}}`, want: `{"a":"x","b":-1.5e+3,"c":true,"d":false,"e":null,"f":[],"g":{},"td_record_time":1700000000}`},
		{name: "a number that is none in Go", body: `{"a":1e999}`, want: `{"a":1e999,"td_record_time":1700000000}`},
		{name: "an empty name", body: `{"":1}`, want: `{"":1,"td_record_time":1700000000}`},
		{name: "a name twice", body: `{"a":1,"a":2}`, want: `{"a":1,"a":2,"td_record_time":1700000000}`},
		{name: "invalid UTF-8 in strings", body: "{\"\xff\":\"\xc3\"}", want: "{\"\xff\":\"\xc3\",\"td_record_time\":1700000000}"},
		{name: "half a surrogate", body: `{"\ud800":"\udc00"}`, want: `{"\ud800":"\udc00","td_record_time":1700000000}`},
		{name: "braces, quotes and names in a string", body: `{"a":"}\\\"{,\"time\":1\\"}`, want: `{"a":"}\\\"{,\"time\":1\\","td_record_time":1700000000}`},
		{name: "quotes and names in a name", body: `{"a\",\"time":1}`, want: `{"a\",\"time":1,"td_record_time":1700000000}`},
		{name: "the deepest nesting", body: nested(10_000), want: strings.TrimSuffix(nested(10_000), "}") + `,"td_record_time":1700000000}`},

		{name: "time as a value", body: `{"a":"time","b":["td_record_time","time"],"c":"td_record_time"}`, want: `{"a":"time","b":["td_record_time","time"],"c":"td_record_time","td_record_time":1700000000}`},
		{name: "time in an object inside", body: `{"a":{"time":1,"b":2,"td_record_time":1}}`, want: `{"a":{"time":1,"b":2,"td_record_time":1},"td_record_time":1700000000}`},
		{name: "time in an object in an array", body: `{"a":[{"time":1},{"td_record_time":1}],"b":1}`, want: `{"a":[{"time":1},{"td_record_time":1}],"b":1,"td_record_time":1700000000}`},
		{name: "time in another case", body: `{"Time":1,"TIME":2,"TD_RECORD_TIME":3,"td_Record_time":4}`, want: `{"Time":1,"TIME":2,"TD_RECORD_TIME":3,"td_Record_time":4,"td_record_time":1700000000}`},
		{name: "longer and shorter names", body: `{"timer":1,"tim":2,"td_record_tim":3,"td_record_time_":4,"atime":5,"td_time":6}`, want: `{"timer":1,"tim":2,"td_record_tim":3,"td_record_time_":4,"atime":5,"td_time":6,"td_record_time":1700000000}`},
		{name: "white space in the name", body: `{"time ":1," time":2,"ti\tme":3}`, want: `{"time ":1," time":2,"ti\tme":3,"td_record_time":1700000000}`},
		{name: "an escaped backslash before u", body: `{"t\\u0069me":1}`, want: `{"t\\u0069me":1,"td_record_time":1700000000}`},
		{name: "other escapes", body: `{"\u0054ime":1,"t\u0169me":2,"\t\u0069me":3,"tim\u0065\u0000":4,"t\u0131me":5}`, want: `{"\u0054ime":1,"t\u0169me":2,"\t\u0069me":3,"tim\u0065\u0000":4,"t\u0131me":5,"td_record_time":1700000000}`},

		{name: "td_record_time", body: `{"a":1,"td_record_time":1600000000}`, result: TimeOwn},
		{name: "time", body: `{"time":1600000000,"a":1}`, result: TimeOwn},
		{name: "both", body: `{"time":1,"td_record_time":2}`, result: TimeOwn},
		{name: "time, null", body: `{"time":null}`, result: TimeOwn},
		{name: "td_record_time, null", body: `{"td_record_time":null}`, result: TimeOwn},
		{name: "time, empty string", body: `{"time":""}`, result: TimeOwn},
		{name: "time, object", body: `{"time":{"a":1}}`, result: TimeOwn},
		{name: "time, array", body: `{"time":[]}`, result: TimeOwn},
		{name: "time with white space", body: "\n{ \"a\" : 1 , \"time\" : 2 }\n", result: TimeOwn},
		{name: "time with one escape", body: `{"t\u0069me":1}`, result: TimeOwn},
		{name: "time in escapes", body: `{"a":1,"\u0074\u0069\u006D\u0065":1}`, result: TimeOwn},
		{name: "td_record_time in escapes", body: `{"td\u005Frecord\u005ftim\u0065":1}`, result: TimeOwn},
		{name: "time behind values with everything", body: `{"a":{"b":[1,{"c":"]}"}]},"d":"\"","e":[[],{}],"time":1}`, result: TimeOwn},
		{name: "time behind an escaped backslash", body: `{"a":"\\","time":1}`, result: TimeOwn},

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
			got, result := appendRecordTime([]byte("before"), sent, 1_700_000_000)
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
	member, end, timed := timeMember(nil, body, arrival)
	if timed != TimeAdded {
		return append(dst, body...), timed
	}
	return slices.Concat(dst, body[:end], member, body[end:]), timed
}

// TestAppendRecordTimeMembers makes objects up and reads them with
// encoding/json, before and after.
func TestAppendRecordTimeMembers(t *testing.T) {
	var results [len(RecordTimeNames)]int
	for seed := range uint64(5000) {
		random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // G404: it makes objects up
		body := []byte(madeUpSpace(random) + madeUpObject(random, 0) + madeUpSpace(random))
		got, result := appendRecordTime(nil, body, 1_700_000_000)
		results[result]++
		want, names := membersOf(t, body)
		if own := slices.Contains(names, "time") || slices.Contains(names, "td_record_time"); own != (result == TimeOwn) {
			t.Errorf("%q: %v", body, result)
		}
		if result == TimeAdded {
			names = append(names, "td_record_time")
			want["td_record_time"] = json.Number("1700000000")
		}
		if members, order := membersOf(t, got); !reflect.DeepEqual(members, want) || !slices.Equal(order, names) {
			t.Errorf("%q became %q", body, got)
		}
	}
	if results[TimeAdded] < 1000 || results[TimeOwn] < 1000 || results[TimeNoObject] > 0 {
		t.Errorf("%d added, %d own, %d no object", results[TimeAdded], results[TimeOwn], results[TimeNoObject])
	}
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
	plain := []string{`"time"`, `"\"time\":"`, `"}"`, `"\\"`, `""`, `"日本"`, `0`, `-1.5E+7`, `1e999`, `true`, `false`, `null`, `[]`, `{}`}
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
		f.Add([]byte(seed), int64(1_700_000_000))
	}
	f.Fuzz(func(t *testing.T, body []byte, arrival int64) {
		want := TimeNoObject
		var members map[string]json.RawMessage
		if json.Unmarshal(body, &members) == nil && members != nil {
			want = TimeAdded
			if _, names := decodeObject(t, body); slices.Contains(names, "td_record_time") || slices.Contains(names, "time") {
				want = TimeOwn
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
