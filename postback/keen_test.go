package postback

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const randomUUID = `"uuid":"` + testUUID + `"`

// keenReader is a reader with a random UUID that is always the same.
func keenReader(arrival time.Time) *KeenReader {
	return &KeenReader{Arrival: arrival, From: Caller{IP: "192.0.2.7"}, Random: func() [16]byte { return testUUIDBytes }, Hold: func(int) bool { return true }}
}

// readKeen reads a body that must be good.
func readKeen(t testing.TB, body string) *Keen {
	t.Helper()
	k, refused := keenReader(time.Unix(testArrival, 0)).Read([]byte(body), true)
	if refused != nil {
		t.Fatalf("%.300q: %s", body, refused.Message)
	}
	return k
}

// TestKeenRequests reads what each kind of client sends, and answers it.
func TestKeenRequests(t *testing.T) {
	type event struct {
		to, record string
	}
	for _, tc := range []struct {
		name, body string
		want       []event
		answer     string
	}{
		{
			"Android", `{"db0.tbl0":[{"keen":{"timestamp":"2026-11-25T02:23:55.675+0000"},"#UUID":"08289530-0000-4000-8000-00000000000a","n":0},{"n":1,"keen":{"timestamp":"2026-11-25T02:23:56.000+0000"},"#UUID":"08289530-0000-4000-8000-00000000000b"}],"db1.tbl1":[{"keen":{"timestamp":"2026-11-25T02:23:57.999+0000"},"#UUID":"08289530-0000-4000-8000-00000000000c","s":"é"}]}`,
			[]event{
				{"db0/tbl0", `{"n":0,"time":1795573435,"uuid":"08289530-0000-4000-8000-00000000000a"}`},
				{"db0/tbl0", `{"n":1,"time":1795573436,"uuid":"08289530-0000-4000-8000-00000000000b"}`},
				{"db1/tbl1", `{"s":"é","time":1795573437,"uuid":"08289530-0000-4000-8000-00000000000c"}`},
			},
			`{"db0.tbl0":[{"success":true},{"success":true}],"db1.tbl1":[{"success":true}]}`,
		},
		{
			"iOS", `{"my_db.my_table":[{"#UUID":"08289530-0000-4000-8000-00000000ABCD","keen":{"timestamp":"2026-11-25T11:23:55+09:00"},"n":0}]}`,
			[]event{{"my_db/my_table", `{"n":0,"time":1795573435,"uuid":"08289530-0000-4000-8000-00000000abcd"}`}},
			`{"my_db.my_table":[{"success":true}]}`,
		},
		{
			"Swift", `{"db.tbl":[{"timestamp":"2026-11-25T11:23:55+09:00","#SSUT":true,"n":0}]}`,
			[]event{{"db/tbl", `{"timestamp":"2026-11-25T11:23:55+09:00","n":0,` + randomUUID + `}`}},
			`{"db.tbl":[{"success":true}]}`,
		},
		{
			"a script", "{\"db.tbl\": [\n  {\"time\": 1795573435, \"n\": 0},\n  {\"time\": 1795573436, \"n\": 1}\n]}\n",
			[]event{
				{"db/tbl", `{"time": 1795573435, "n": 0,` + randomUUID + `}`},
				{"db/tbl", `{"time": 1795573436, "n": 1,` + randomUUID + `}`},
			},
			`{"db.tbl":[{"success":true},{"success":true}]}`,
		},
		{
			"the JavaScript branch", `{"db.tbl":[{"keen":{"timestamp":"Wed, 25 Nov 2026 02:23:55 GMT"},"#SSUT":true,"n":0}]}`,
			[]event{{"db/tbl", `{"n":0,` + randomUUID + `}`}},
			`{"db.tbl":[{"success":true}]}`,
		},
		{"no event", `{"db.tbl":[]}`, nil, `{"db.tbl":[]}`},
		{
			"a collection twice", `{"db.tbl":[{"n":0}],"db.x":[],"db.tbl":[{"n":1},{"n":2}]}`,
			[]event{{"db/tbl", `{"n":0,` + randomUUID + `}`}, {"db/tbl", `{"n":1,` + randomUUID + `}`}, {"db/tbl", `{"n":2,` + randomUUID + `}`}},
			`{"db.tbl":[{"success":true}],"db.x":[],"db.tbl":[{"success":true},{"success":true}]}`,
		},
		{
			"an escaped name", `{"d\u0062\u002etbl":[{}]}`,
			[]event{{"db/tbl", `{` + randomUUID + `}`}},
			`{"d\u0062\u002etbl":[{"success":true}]}`,
		},
		{
			"a byte-order mark", "\ufeff" + `{"db.tbl":[{"n":0}]}`,
			[]event{{"db/tbl", `{"n":0,` + randomUUID + `}`}},
			`{"db.tbl":[{"success":true}]}`,
		},
		{
			"no UTF-8", "{\"db.tbl\":[{\"n\":\"a\xffb\"}]}",
			[]event{{"db/tbl", `{"n":"a` + "\ufffd" + `b",` + randomUUID + `}`}},
			`{"db.tbl":[{"success":true}]}`,
		},
		{
			"surrogates in UTF-8", "{\"db.tbl\":[{\"n\":\"\xed\xa0\xbd\xed\xb8\x80\"}]}",
			[]event{{"db/tbl", `{"n":"😀",` + randomUUID + `}`}},
			`{"db.tbl":[{"success":true}]}`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := readKeen(t, tc.body)
			var got []event
			for _, c := range k.Collections {
				for _, e := range c.Events {
					if e.Alone || e.Fault != 0 {
						t.Errorf("%s: alone %v, fault %d", e.Record, e.Alone, e.Fault)
					}
					got = append(got, event{c.Database + "/" + c.Table, string(e.Record)})
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %q\nwant %q", got, tc.want)
			}
			if answer := string(k.AppendAnswer([]byte("HEAD"))); answer != "HEAD"+tc.answer {
				t.Errorf("answered %s", answer)
			}
		})
	}
}

// TestKeenEvents takes single events.
func TestKeenEvents(t *testing.T) {
	const (
		id   = "08289530-0000-4000-8000-00000000000a"
		uuid = `"uuid":"` + id + `"`
		own  = `"#UUID":"` + id + `"`
		keen = `"keen":{"timestamp":"2026-11-25T02:23:55.675+0000"}`
		at   = `"time":1795573435`
		now  = `1800000000`
	)
	columns := func(length int) string { return `{"a":"` + strings.Repeat("x", length-len(`{"a":""}`)) + `"}` }
	nested := func(depth int) string {
		return `{"a":` + strings.Repeat("[", depth-1) + strings.Repeat("]", depth-1) + "}"
	}
	const added = len(`,` + randomUUID)
	for _, tc := range []struct {
		name, event string
		arrival     int64 // testArrival if 0
		want, alone string
		fault       KeenFault
	}{
		// The members of the SDKs.
		{name: "all", event: `{"a":1,` + keen + `,` + own + `,"b":2}`, want: `{"a":1,"b":2,` + at + `,` + uuid + `}`},
		{name: "in front", event: `{` + own + `,` + keen + `,"a":1}`, want: `{"a":1,` + at + `,` + uuid + `}`},
		{name: "behind", event: `{"a":1,` + own + `,` + keen + `}`, want: `{"a":1,` + at + `,` + uuid + `}`},
		{name: "between", event: `{"a":1,` + own + `,"b":2,` + keen + `,"c":3}`, want: `{"a":1,"b":2,"c":3,` + at + `,` + uuid + `}`},
		{name: "nothing else", event: `{` + keen + `,` + own + `}`, want: `{` + at + `,` + uuid + `}`},
		{name: "none of them", event: `{"a":1}`, want: `{"a":1,` + randomUUID + `}`},
		{name: "no member", event: `{ }`, want: `{` + randomUUID + `}`},
		{name: "white space", event: " {\n \"a\" : 1 ,\t\"b\":[ 1, 2 ] , " + own + " , \"c\" : {\"d\" : 3 } } ", want: "{\"a\" : 1 ,\t\"b\":[ 1, 2 ],\"c\" : {\"d\" : 3 }," + uuid + "}"},
		{name: "inside of others", event: `{"a":{"keen":1,"#UUID":2,"#SSUT":3,"uuid":4,"time":5},"b":["keen"]}`, want: `{"a":{"keen":1,"#UUID":2,"#SSUT":3,"uuid":4,"time":5},"b":["keen"],` + randomUUID + `}`},
		{name: "in another case", event: `{"Keen":1,"#uuid":2,"#ssut":true,"KEEN":3}`, want: `{"Keen":1,"#uuid":2,"#ssut":true,"KEEN":3,` + randomUUID + `}`},
		{name: "with escapes", event: `{"\u006been":{"time\u0073tamp":"2026\u002d11-25T02:23:55Z"},"\u0023UUID":"0828953\u0030-0000-4000-8000-00000000000a","a":1}`, want: `{"a":1,` + at + `,` + uuid + `}`},
		{name: "several, the last of each counts", event: `{"keen":{"timestamp":"2020-01-01T00:00:00Z"},"#UUID":"x","#SSUT":true,"a":1,` + keen + `,` + own + `,"#SSUT":false}`, want: `{"a":1,` + at + `,` + uuid + `}`},
		{name: "values as they are", event: `{"a":12345678901234567890.10,"b":-1e999,"c":"\ud83d\"\\","d":[{}, "]"],"e":null,"f":true,"":""}`, want: `{"a":12345678901234567890.10,"b":-1e999,"c":"\ud83d\"\\","d":[{}, "]"],"e":null,"f":true,"":"",` + randomUUID + `}`},
		{name: "a name twice", event: `{"a":1,"a":2}`, want: `{"a":1,"a":2,` + randomUUID + `}`},

		// keen.timestamp
		{name: "milliseconds", event: `{"keen":{"timestamp":"2026-11-25T02:23:55.999+0000"}}`, want: `{` + at + `,` + randomUUID + `}`},
		{name: "no milliseconds", event: `{"keen":{"timestamp":"2026-11-25T02:23:55+0000"}}`, want: `{` + at + `,` + randomUUID + `}`},
		{name: "an offset without a colon", event: `{"keen":{"timestamp":"2026-11-24T22:53:55.001-0330"}}`, want: `{` + at + `,` + randomUUID + `}`},
		{name: "an offset with a colon", event: `{"keen":{"timestamp":"2026-11-25T11:23:55+09:00"}}`, want: `{` + at + `,` + randomUUID + `}`},
		{name: "a negative offset with a colon", event: `{"keen":{"timestamp":"2026-11-24T22:53:55-03:30"}}`, want: `{` + at + `,` + randomUUID + `}`},
		{name: "Z", event: `{"keen":{"timestamp":"2026-11-25T02:23:55.1Z"}}`, want: `{` + at + `,` + randomUUID + `}`},
		{name: "RFC 1123", event: `{"keen":{"timestamp":"Wed, 25 Nov 2026 02:23:55 GMT"}}`, want: `{` + at + `,` + randomUUID + `}`},
		{name: "RFC 1123 in UTC", event: `{"keen":{"timestamp":"Wed, 25 Nov 2026 02:23:55 UTC"}}`, want: `{` + at + `,` + randomUUID + `}`},
		{name: "RFC 1123 with an offset", event: `{"keen":{"timestamp":"Wed, 25 Nov 2026 11:23:55 +0900"}}`, want: `{` + at + `,` + randomUUID + `}`},
		{name: "very old", event: `{"keen":{"timestamp":"2001-09-09T01:46:40Z"}}`, want: `{"time":1000000000,` + randomUUID + `}`},
		{name: "1970", event: `{"keen":{"timestamp":"1970-01-01T00:00:00Z"}}`, want: `{"time":0,` + randomUUID + `}`},
		{name: "three days ahead", event: `{"keen":{"timestamp":"2027-01-18T08:00:00Z"}}`, want: `{"time":1800259200,` + randomUUID + `}`},
		{name: "more than three days ahead", event: `{"keen":{"timestamp":"2027-01-18T08:00:01Z"}}`, want: `{` + randomUUID + `}`},
		{name: "more than three days ahead of a clock that is wrong", arrival: 1_000_000_000, event: `{` + keen + `}`, want: `{` + at + `,` + randomUUID + `}`},
		{name: "before 1970", event: `{"keen":{"timestamp":"0008-11-25T02:23:55+0000"}}`, want: `{` + randomUUID + `}`},
		{name: "the last timestamp counts", event: `{"keen":{"timestamp":"2020-01-01T00:00:00Z","location":{"timestamp":"x"},"timestamp" : "2026-11-25T02:23:55Z" }}`, want: `{` + at + `,` + randomUUID + `}`},
		{name: "no offset", event: `{"keen":{"timestamp":"2026-11-25T02:23:55"}}`, want: `{` + randomUUID + `}`},
		{name: "a zone by name", event: `{"keen":{"timestamp":"Wed, 25 Nov 2026 11:23:55 JST"}}`, want: `{` + randomUUID + `}`},
		{name: "no such day", event: `{"keen":{"timestamp":"2026-02-30T02:23:55Z"}}`, want: `{` + randomUUID + `}`},
		{name: "a date alone", event: `{"keen":{"timestamp":"2026-11-25"}}`, want: `{` + randomUUID + `}`},
		{name: "empty", event: `{"keen":{"timestamp":""}}`, want: `{` + randomUUID + `}`},
		{name: "text", event: `{"keen":{"timestamp":"tomorrow-0900"}}`, want: `{` + randomUUID + `}`},
		{name: "a number", event: `{"keen":{"timestamp":1795573435}}`, want: `{` + randomUUID + `}`},
		{name: "null", event: `{"keen":{"timestamp":null}}`, want: `{` + randomUUID + `}`},
		{name: "an object", event: `{"keen":{"timestamp":{"timestamp":"2026-11-25T02:23:55Z"}}}`, want: `{` + randomUUID + `}`},
		{name: "no timestamp", event: `{"keen":{},"a":1}`, want: `{"a":1,` + randomUUID + `}`},
		{name: "keen is a string", event: `{"keen":"2026-11-25T02:23:55Z","a":1}`, want: `{"a":1,` + randomUUID + `}`},
		{name: "keen is an array", event: `{"keen":["timestamp","2026-11-25T02:23:55Z"],"a":1}`, want: `{"a":1,` + randomUUID + `}`},
		{name: "keen is null", event: `{"keen":null,"a":1}`, want: `{"a":1,` + randomUUID + `}`},

		// #UUID
		{name: "upper case", event: `{"#UUID":"ABCDEFAB-CDEF-4ABC-8DEF-ABCDEFABCDEF"}`, want: `{"uuid":"abcdefab-cdef-4abc-8def-abcdefabcdef"}`},
		{name: "no UUID", event: `{"#UUID":"event 7"}`, want: `{"uuid":"b8fa1c9a-7a94-547c-aa40-114da5b9e921"}`},
		{name: "the same with escapes", event: `{"#UUID":"event\u00207"}`, want: `{"uuid":"b8fa1c9a-7a94-547c-aa40-114da5b9e921"}`},
		{name: "in braces", event: `{"#UUID":"{` + id + `}"}`, want: `{"uuid":"a2ab9912-1bc6-5faf-85e6-daaa0324a974"}`},
		{name: "without hyphens", event: `{"#UUID":"08289530000040008000000000000000000a"}`, want: `{"uuid":"957b7a2b-f90a-5a34-861f-f959d14cf1ea"}`},
		{name: "a wrong digit", event: `{"#UUID":"08289530-0000-4000-8000-00000000000g"}`, want: `{"uuid":"e0bdf146-d39c-5554-8366-04cc1de5ee11"}`},
		{name: "a number for a UUID", event: `{"#UUID":7}`, want: `{"uuid":"3403cafa-e529-550c-9985-b38c317e970e"}`},
		{name: "an empty UUID", event: `{"#UUID":""}`, want: `{` + randomUUID + `}`},
		{name: "no UUID but null", event: `{"#UUID":null}`, want: `{` + randomUUID + `}`},

		// #SSUT
		{name: "the gateway's time", event: `{"#SSUT":true,` + keen + `,"a":1}`, want: `{"a":1,` + randomUUID + `}`},
		{name: "#SSUT is false", event: `{"#SSUT":false,` + keen + `}`, want: `{` + at + `,` + randomUUID + `}`},
		{name: "#SSUT is null", event: `{"#SSUT":null,` + keen + `}`, want: `{` + at + `,` + randomUUID + `}`},
		{name: "#SSUT is a number", event: `{"#SSUT":1,` + keen + `}`, want: `{` + at + `,` + randomUUID + `}`},
		{name: "#SSUT is empty", event: `{"#SSUT":"",` + keen + `}`, want: `{` + at + `,` + randomUUID + `}`},
		{name: "a column for the arrival", event: `{"#SSUT":"col",` + keen + `,"a":1}`, want: `{"a":1,` + at + `,"col":` + now + `,` + randomUUID + `}`},
		{name: "a column for the arrival, and no time", event: `{"a":1,"#SSUT":"col"}`, want: `{"a":1,"col":` + now + `,` + randomUUID + `}`},
		{name: "a column with escapes for the arrival", event: `{"#SSUT":"c\"\u006fl",` + keen + `}`, want: `{` + at + `,"c\"\u006fl":` + now + `,` + randomUUID + `}`},
		{name: "a column for the arrival that is there", event: `{"col":1,"a":2,"c\u006fl":3,"b":4,"COL":5,"#SSUT":"col"}`, want: `{"a":2,"b":4,"col":` + now + `,` + randomUUID + `}`},
		{name: "a column for the arrival, and a clock that is wrong", arrival: 1_000_000_000, event: `{"col":1,"#SSUT":"col",` + keen + `}`, want: `{"col":1,` + at + `,` + randomUUID + `}`},
		{name: "the column for the arrival is time", event: `{"time":5,"a":1,"#SSUT":"time",` + keen + `}`, want: `{"a":1,"time":` + now + `,` + randomUUID + `}`},
		{name: "the column for the arrival is uuid", event: `{"#SSUT":"uuid",` + keen + `,"a":1}`, alone: `{"a":1,"td_record_time":1795573435,"uuid":` + now + `}`},
		{name: "the column for the arrival is td_record_time, alone", event: `{"#SSUT":"td_record_time",` + keen + `,"uuid":1}`, alone: `{"uuid":1,"td_record_time":` + now + `}`},
		{name: "the column for the arrival is keen", event: `{"#SSUT":"keen",` + keen + `}`, want: `{` + at + `,"keen":` + now + `,` + randomUUID + `}`},

		// time
		{name: "its own time", event: `{"a":1,"time":1700000000,` + keen + `}`, want: `{"a":1,"time":1700000000,` + randomUUID + `}`},
		{name: "its own time, very old", event: `{"time":0,` + keen + `}`, want: `{"time":0,` + randomUUID + `}`},
		{name: "its own time with escapes", event: `{"t\u0069me":1700000000,` + keen + `}`, want: `{"t\u0069me":1700000000,` + randomUUID + `}`},
		{name: "its own time, and the gateway's", event: `{"#SSUT":true,"time":1700000000}`, want: `{"time":1700000000,` + randomUUID + `}`},
		{name: "its own td_record_time", event: `{"td_record_time":1700000000,` + keen + `}`, want: `{"td_record_time":1700000000,` + at + `,` + randomUUID + `}`},
		{name: "its own time is a string", event: `{"time":"noon",` + keen + `}`, alone: `{"time":"noon","td_record_time":1795573435}`},
		{name: "its own time is in milliseconds", event: `{"time":1795573435000}`, alone: `{"time":1795573435000}`},
		{name: "its own time has a fraction", event: `{"time":1795573435.5}`, alone: `{"time":1795573435.5}`},
		{name: "its own time is negative", event: `{"time":-1}`, alone: `{"time":-1}`},
		{name: "its own time is null", event: `{"time":null,` + keen + `,"#SSUT":true}`, alone: `{"time":null}`},
		{name: "its own time twice", event: `{"time":1700000000,"time":1700000000}`, alone: `{"time":1700000000,"time":1700000000}`},
		{name: "its own time in another case", event: `{"Time":1700000000}`, alone: `{"Time":1700000000}`},

		// What goes alone.
		{name: "uuid", event: `{"uuid":"x",` + keen + `,` + own + `}`, alone: `{"uuid":"x","td_record_time":1795573435}`},
		{name: "uuid, null", event: `{"a":1,"uuid":null}`, alone: `{"a":1,"uuid":null}`},
		{name: "uuid in another case", event: `{"UuId":1,` + keen + `}`, alone: `{"UuId":1,"td_record_time":1795573435}`},
		{name: "uuid with escapes", event: `{"\u0055u\u0049d":1,` + keen + `}`, alone: `{"\u0055u\u0049d":1,"td_record_time":1795573435}`},
		{name: "uuid and the gateway's time", event: `{"uuid":1,` + keen + `,"#SSUT":true}`, alone: `{"uuid":1}`},
		{name: "uuid and its own time", event: `{"uuid":1,` + keen + `,"time":1700000000}`, alone: `{"uuid":1,"time":1700000000}`},
		{name: "uuid and its own td_record_time", event: `{"uuid":1,` + keen + `,"TD_record_time":1700000000}`, alone: `{"uuid":1,"TD_record_time":1700000000}`},
		{name: "uuid and a column for the arrival", event: `{"uuid":1,` + keen + `,"#SSUT":"col"}`, alone: `{"uuid":1,"td_record_time":1795573435,"col":` + now + `}`},
		{name: "nested as deeply as can be", event: nested(maxNesting), want: strings.TrimSuffix(nested(maxNesting), "}") + `,` + randomUUID + `}`},
		{name: "nested too deeply", event: nested(maxNesting + 1), alone: nested(maxNesting + 1)},
		{name: "nested too deeply where it goes", event: `{"a":1,"keen":` + nested(maxNesting) + `}`, want: `{"a":1,` + randomUUID + `}`},
		{name: "nested too deeply, and then less", event: `{"a":` + nested(maxNesting) + `,"b":[]}`, alone: `{"a":` + nested(maxNesting) + `,"b":[]}`},
		{name: "as large as can be", event: `{"time":0,` + columns(MaxBatchRecord - added - len(`"time":0,`))[1:], want: `{"time":0,` + strings.TrimSuffix(columns(MaxBatchRecord - added - len(`"time":0,`))[1:], "}") + `,` + randomUUID + `}`},
		{name: "a byte larger", event: `{"time":0,` + columns(MaxBatchRecord - added - len(`"time":0,`) + 1)[1:], alone: `{"time":0,` + columns(MaxBatchRecord - added - len(`"time":0,`) + 1)[1:]},
		{name: "as large as Postback takes", event: columns(MaxBody), alone: columns(MaxBody)},
		{name: "as large as Postback takes, and what goes", event: columns(MaxBody - 1)[:MaxBody-2] + `,` + own + `}`, alone: columns(MaxBody - 1)},

		// What is never taken.
		{name: "larger than Postback takes", event: columns(MaxBody + 1), fault: KeenTooLarge},
		{name: "larger than Postback takes with its time", event: `{` + keen + `,` + columns(MaxBody)[1:], fault: KeenTooLarge},
		{name: "very large", event: columns(4 * MaxBody), fault: KeenTooLarge},
		{name: "very many members", event: `{` + strings.Repeat(`"a":1,"keen":{},`, 3<<16) + `"b":1}`, fault: KeenTooLarge},
		{name: "an array for an event", event: `[{"a":1}]`, fault: KeenNoObject},
		{name: "a string for an event", event: `"{}"`, fault: KeenNoObject},
		{name: "a number for an event", event: `-1.5e3`, fault: KeenNoObject},
		{name: "null for an event", event: `null`, fault: KeenNoObject},
		{name: "true for an event", event: `true`, fault: KeenNoObject},
	} {
		t.Run(tc.name, func(t *testing.T) {
			arrival := time.Unix(testArrival, 999_999_999)
			if tc.arrival != 0 {
				arrival = time.Unix(tc.arrival, 0)
			}
			body := []byte(`{"db.tbl":[` + tc.event + ` , {"behind":1}]}`)
			before := bytes.Clone(body)
			k, refused := keenReader(arrival).Read(body, true)
			if refused != nil {
				t.Fatal(refused.Message)
			}
			events := k.Collections[0].Events
			e := events[0]
			if want := tc.want + tc.alone; string(e.Record) != want || e.Alone != (tc.alone != "") || e.Fault != tc.fault {
				t.Errorf("got %.300q, alone %v, fault %d\nwant %.300q", e.Record, e.Alone, e.Fault, want)
			}
			if len(events) != 2 || string(events[1].Record) != `{"behind":1,`+randomUUID+`}` {
				t.Errorf("behind it is %.300v", events[1:])
			}
			if !bytes.Equal(body, before) {
				t.Error("the body has changed")
			}
		})
	}
}

// TestKeenAlone keeps an event that goes alone as a request of its own.
func TestKeenAlone(t *testing.T) {
	e := readKeen(t, `{"db.tbl":[{"uuid":1,"#SSUT":true,"keen":{"timestamp":"2027-01-15T08:00:00Z"}}]}`).Collections[0].Events[0]
	data := keptPost(string(e.Record), time.Unix(testArrival, 0), nil)
	if kept, err := ReadKept(data); err != nil || string(kept.Body) != `{"uuid":1,"td_record_time":1800000000}` {
		t.Errorf("kept as %q, %v", kept.Body, err)
	}
}

// TestKeenNames reads collections of which some have no table's name.
func TestKeenNames(t *testing.T) {
	for name, want := range map[string]Destination{
		"db.tbl": {"db", "tbl"}, "D_1.2": {"D_1", "2"},
		"": {}, ".": {}, "db": {}, "db.": {}, ".tbl": {}, "a.b.c": {}, "a..b": {}, "d-b.tbl": {}, "db.t l": {}, " db.tbl": {}, "db.tbl\n": {}, "db.é": {}, `db.\t`: {}, "db/tbl": {}, "db.tbl/x": {}, "db.t%62l": {}, "db.\x00": {},
	} {
		quoted, _ := json.Marshal(name)
		k := readKeen(t, `{`+string(quoted)+`:[{"a":1},2]}`)
		c := k.Collections[0]
		answer := `[{"success":true},` + keenError("InvalidPropertyValueError", "the event must be a JSON object") + `]}`
		if want.Database == "" {
			bad := keenError("InvalidCollectionNameError", "the name must be a database and a table with a dot between them, both of letters, digits and _")
			answer = `[` + bad + `,` + bad + `]}`
		}
		if c.Destination != want || len(c.Events) != 2 || (c.Events[0].Record == nil) != (want.Database == "") {
			t.Errorf("%q: got %+v, %+v", name, c.Destination, c.Events)
		}
		if got := string(k.AppendAnswer(nil)); got != `{`+string(quoted)+`:`+answer {
			t.Errorf("%q: answered %s", name, got)
		}
		if batches := k.Batches(MaxBatchBytes); len(batches) != 1 && want.Database != "" || len(batches) != 0 && want.Database == "" {
			t.Errorf("%q: %d batches", name, len(batches))
		}
	}
}

func keenError(name, description string) string {
	return `{"success":false,"error":{"name":"` + name + `","description":"` + description + `"}}`
}

// TestKeenAnswer answers events of which some can never be taken: in the order of the
// events, with errors for which clients delete them.
func TestKeenAnswer(t *testing.T) {
	k := readKeen(t, `{"a.b":[{"n":0},7,{"n":1},{"x":"`+strings.Repeat("x", MaxBody)+`"}],"a-b":[{}],"a.c":[{"uuid":1},{}]}`)
	k.Collections[0].Events[2].Fault = KeenRefused
	const success = `{"success":true}`
	want := `{"a.b":[` + success + `,` + keenError("InvalidPropertyValueError", "the event must be a JSON object") + `,` +
		keenError("InvalidPropertyValueError", "Treasure Data has refused the event") + `,` + keenError("InvalidPropertyValueError", "the event is larger than Treasure Data takes") + `],"a-b":[` +
		keenError("InvalidCollectionNameError", "the name must be a database and a table with a dot between them, both of letters, digits and _") + `],"a.c":[` + success + `,` + success + `]}`
	got := k.AppendAnswer(nil)
	if string(got) != want || !json.Valid(got) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestKeenFaults: each fault has an error that makes clients delete the event, and
// text for JSON.
func TestKeenFaults(t *testing.T) {
	deletes := []string{"InvalidCollectionNameError", "InvalidPropertyNameError", "InvalidPropertyValueError"}
	for fault := KeenBadName; int(fault) < len(keenFaults); fault++ {
		var result struct {
			Success *bool
			Error   struct{ Name, Description string }
		}
		err := json.Unmarshal(fault.appendResult(nil), &result)
		if err != nil || result.Success == nil || *result.Success || !slices.Contains(deletes, result.Error.Name) || result.Error.Description != fault.String() {
			t.Errorf("%d: %+v, %v", fault, result, err)
		}
	}
}

// TestKeenRefused reads bodies that are none of these.
func TestKeenRefused(t *testing.T) {
	for _, tc := range []struct {
		name, body string
		unmarked   bool
		refused    bool
	}{
		{name: "unmarked", body: `{"db.tbl":[{}],"x.y":[1]}`, unmarked: true},
		{name: "unmarked, a name with one dot", body: `{"d-b.tbl":[{}]}`, unmarked: true},
		{name: "unmarked, no dot", body: `{"db.tbl":[{}],"events":[{}]}`, unmarked: true, refused: true},
		{name: "unmarked, two dots", body: `{"a.b.c":[{}]}`, unmarked: true, refused: true},
		{name: "unmarked, one record", body: `{"a":1}`, unmarked: true, refused: true},
		{name: "nothing", body: "", refused: true},
		{name: "white space", body: " \n", refused: true},
		{name: "no collection", body: "{ }", refused: true},
		{name: "null", body: "null", refused: true},
		{name: "an array", body: `[{"db.tbl":[]}]`, refused: true},
		{name: "a string", body: `"x"`, refused: true},
		{name: "cut", body: `{"db.tbl":[{}]`, refused: true},
		{name: "two", body: `{"db.tbl":[{}]}{"db.tbl":[{}]}`, refused: true},
		{name: "no JSON", body: `{"db.tbl":[{a:1}]}`, refused: true},
		{name: "one record", body: `{"a":1}`, refused: true},
		{name: "an object for events", body: `{"db.tbl":{}}`, refused: true},
		{name: "null for events", body: `{"db.tbl":null}`, refused: true},
		{name: "a string for events", body: `{"db.tbl":"[]"}`, refused: true},
		{name: "as many events as can be", body: `{"db.tbl":[` + strings.Repeat("1,", MaxKeenEvents-2) + "1]}"},
		{name: "an event too many", body: `{"db.tbl":[` + strings.Repeat("1,", MaxKeenEvents-1) + "1]}", refused: true},
		{name: "too many collections", body: `{` + strings.Repeat(`"db.tbl":[],`, MaxKeenEvents) + `"db.tbl":[]}`, refused: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k, refused := keenReader(time.Unix(testArrival, 0)).Read([]byte(tc.body), !tc.unmarked)
			if (refused != nil) != tc.refused || (k == nil) != tc.refused {
				t.Fatalf("got %+v, %+v", k, refused)
			}
			if refused != nil && (refused.Status != 400 || refused.Code != "invalid_request") {
				t.Errorf("refused with %+v", refused)
			}
		})
	}
}

// TestKeenMemory: what is counted is about what is held, and never much less.
func TestKeenMemory(t *testing.T) {
	for name, text := range map[string]string{
		"usual":             string(keenBody400()),
		"empty events":      `{"a.b":[` + strings.TrimSuffix(strings.Repeat("{},", MaxKeenEvents-1), ",") + "]}",
		"no events":         `{"a.b":[` + strings.TrimSuffix(strings.Repeat("0,", MaxKeenEvents-1), ",") + "]}",
		"empty collections": `{` + strings.TrimSuffix(strings.Repeat(`"a.b":[],`, MaxKeenEvents), ",") + "}",
		"small collections": `{` + strings.TrimSuffix(strings.Repeat(`"a.b":[{}],`, MaxKeenEvents/2), ",") + "}",
		"long names":        `{"` + strings.Repeat("x", 1<<17) + `":[],"` + strings.Repeat(`\u0041`, 1<<16) + `":[1]}`,
		"bad names":         `{"a-b":[` + strings.TrimSuffix(strings.Repeat("{},", MaxKeenEvents-1), ",") + "]}",
		"large":             `{"a.b":[` + strings.Repeat(`{"a":"`+strings.Repeat("x", 900_000)+`"},`, 5) + "{}]}",
		"no UTF-8":          `{"a.b":[{"a":"` + strings.Repeat("x\xff", 1<<17) + `"},{"a":1}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			body := []byte(text)
			held := 0
			r := keenReader(time.Unix(testArrival, 0))
			r.Hold = func(n int) bool { held += n; return true }
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			k, refused := r.Read(body, true)
			if refused != nil {
				t.Fatal(refused.Message)
			}
			answer := k.AppendAnswer(nil)
			runtime.GC()
			runtime.ReadMemStats(&after)
			used := float64(after.HeapAlloc) - float64(before.HeapAlloc)
			runtime.KeepAlive(answer)
			runtime.KeepAlive(k)
			runtime.KeepAlive(body)
			if used > float64(held+64<<10) {
				t.Errorf("%.0f bytes are held, and %d counted", used, held)
			}
			if most := 4*len(body) + 400*MaxKeenEvents; held > most {
				t.Errorf("%d bytes are counted for %d", held, len(body))
			}
			for limit := range 4 { // refused wherever the room ends
				left := held * limit / 4
				r.Hold = func(n int) bool { left -= n; return left >= 0 }
				if _, refused := r.Read(body, true); refused != Overloaded {
					t.Errorf("with %d/4 of the room: %+v", limit, refused)
				}
			}
		})
	}
}

// TestKeenLongTexts: of a text that is too long for what it stands for, no copies are
// made that are not counted.
func TestKeenLongTexts(t *testing.T) {
	long := strings.Repeat(`\n`, 4<<20)
	for name, text := range map[string]string{
		"collection": `{"` + long + `":[]}`,
		"#UUID":      `{"a.b":[{"#UUID":"` + long + `"}]}`,
		"timestamp":  `{"a.b":[{"keen":{"timestamp":"` + long + `"}}]}`,
		"#SSUT":      `{"a.b":[{"#SSUT":"` + long + `"}]}`,
		"column":     `{"a.b":[{"#SSUT":"x","` + long + `":1}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			body := []byte(text)
			held := 0
			r := keenReader(time.Unix(testArrival, 0))
			r.Hold = func(n int) bool { held += n; return true }
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if _, refused := r.Read(body, true); refused != nil {
				t.Fatal(refused.Message)
			}
			runtime.ReadMemStats(&after)
			if made := after.TotalAlloc - before.TotalAlloc; made > uint64(held+256<<10) {
				t.Errorf("%d bytes are allocated, and %d counted", made, held)
			}
		})
	}
	again := func() string {
		return string(readKeen(t, `{"a.b":[{"#UUID":"`+long+`"}]}`).Collections[0].Events[0].Record)
	}
	if first := again(); first != again() {
		t.Error("a repeat has another uuid")
	}
}

// TestKeenBatches splits events.
func TestKeenBatches(t *testing.T) {
	events := func(n int, event string) string { return strings.TrimSuffix(strings.Repeat(event+",", n), ",") }
	tenth := `{"time":1,"a":"` + strings.Repeat("x", 490_000) + `"}`
	for _, tc := range []struct {
		name, body string
		most       int
		want       string // db/table and number of each
	}{
		{"one", `{"a.b":[{}]}`, MaxBatchBytes, "a/b 1"},
		{"none", `{"a.b":[],"a.c":[1],"c":[{}],"a.d":[{"uuid":1}]}`, MaxBatchBytes, ""},
		{"as many as can be", `{"a.b":[` + events(500, "{}") + `]}`, MaxBatchBytes, "a/b 500"},
		{"one more", `{"a.b":[` + events(501, "{}") + `]}`, MaxBatchBytes, "a/b 500, a/b 1"},
		{"many", `{"a.b":[` + events(1700, "{}") + `]}`, MaxBatchBytes, "a/b 500, a/b 500, a/b 500, a/b 200"},
		{"collections", `{"a.b":[{},{}],"a.c":[{}],"a.b":[{}]}`, MaxBatchBytes, "a/b 2, a/c 1, a/b 1"},
		{"with others between", `{"a.b":[{},1,{"uuid":1},{},[],{}]}`, MaxBatchBytes, "a/b 3"},
		{"large", `{"a.b":[` + events(21, tenth) + `]}`, MaxBatchBytes, "a/b 10, a/b 10, a/b 1"},
		{"a smaller limit", `{"a.b":[` + events(5, tenth) + `]}`, 1_000_000, "a/b 2, a/b 2, a/b 1"},
		{"without a time", `{"a.b":[` + events(4, `{"#SSUT":true}`) + `]}`, len("[]") + 2*len(`{`+randomUUID+`}`) + 2*(maxTimeMember+len(",")), "a/b 2, a/b 2"},
		{"larger than the limit", `{"a.b":[{},` + events(2, tenth) + `,{}]}`, 1000, "a/b 1, a/b 1, a/b 1, a/b 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := readKeen(t, tc.body)
			var got []string
			var all []*KeenEvent
			for _, b := range k.Batches(tc.most) {
				got = append(got, fmt.Sprintf("%s/%s %d", b.Database, b.Table, len(b.Events)))
				all = append(all, b.Events...)
				size := len("[]") - len(",")
				kept, _ := b.ToKeep(benchKey, "v2", time.Unix(testArrival, 0))
				for _, record := range kept.Records {
					size += len(record) + len(",")
				}
				if size > tc.most && len(b.Events) > 1 {
					t.Errorf("a batch has %d bytes", size)
				}
			}
			if got := strings.Join(got, ", "); got != tc.want {
				t.Errorf("got %s", got)
			}
			for i := range k.Collections {
				for n := range k.Collections[i].Events {
					if e := &k.Collections[i].Events[n]; !e.Alone && e.Fault == 0 {
						if len(all) == 0 || all[0] != e {
							t.Fatal("an event is not in its place")
						}
						all = all[1:]
					}
				}
			}
			if len(all) > 0 {
				t.Errorf("%d events more", len(all))
			}
		})
	}
}

// TestKeenBatchesLeft makes batches of the events that v2 has not taken.
func TestKeenBatchesLeft(t *testing.T) {
	k := readKeen(t, `{"a.b":[{"n":0},{"n":1},{"n":2}],"a.c":[{"n":3}],"a.d":[{"n":4}]}`)
	k.Collections[0].Events[1].Taken = true
	k.Collections[0].Events[2].Fault = KeenRefused
	k.Collections[1].Events[0].Taken = true
	var left []string
	for _, b := range k.Batches(MaxBatchBytes) {
		for _, e := range b.Events {
			left = append(left, b.Table+string(e.Record[:len(`{"n":0`)]))
		}
	}
	if want := []string{`b{"n":0`, `d{"n":4`}; !slices.Equal(left, want) {
		t.Errorf("got %q", left)
	}
}

// TestCheckKeenKey: a key must be the same behind Authorization: TD1.
func TestCheckKeenKey(t *testing.T) {
	for key, want := range map[string]bool{benchKey: true, "abc": true, "1/a;b": false, "1/a b": false, "": false, "1/": false} {
		refused := CheckKeenKey(key)
		if (refused == nil) != want {
			t.Errorf("%q: %+v", key, refused)
		}
		if refused != nil && (refused.Status != 400 || refused.Code != "invalid_write_key" || key != "" && strings.Contains(refused.Message, key)) {
			t.Errorf("%q: %+v", key, refused)
		}
	}
}

// rawMember is a member as encoding/json reads it, its value as it was spelled.
type rawMember struct {
	name  string
	value string
}

func rawMembers(t *testing.T, text []byte) (members []rawMember) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	if token, err := d.Token(); err != nil || token != json.Delim('{') {
		t.Fatalf("%q: %v, %v", text, token, err)
	}
	for d.More() {
		name, err := d.Token()
		var value json.RawMessage
		if err == nil {
			err = d.Decode(&value)
		}
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		members = append(members, rawMember{name.(string), string(value)})
	}
	return members
}

// FuzzKeen reads bodies also with encoding/json. A second set of rules, on what that
// reads, says what each event must become: its members, in their order, as they were
// spelled, less those of the SDKs.
// TestKeenPlaceholders fills columns in that hold their own name, as legacy did, or
// leaves them out.
func TestKeenPlaceholders(t *testing.T) {
	const (
		keen   = `"keen":{"timestamp":"2026-11-25T02:23:55.675+0000"}`
		agent  = `"td_browser":"td_browser","td_browser_version":"td_browser_version","td_os":"td_os","td_os_version":"td_os_version"`
		ip     = `"td_ip":"192.0.2.7"`
		global = `"td_global_id":"g\"7"`
		at     = `"time":1795573435`
	)
	for _, tc := range []struct {
		name, event string
		want, alone string
		from        *Caller
	}{
		{name: "the address", event: `{"td_ip" : "td_ip" ,"a":1,` + keen + `}`, want: `{"a":1,` + ip + `,` + at + `,` + randomUUID + `}`},
		{name: "the address alone", event: `{"td_ip":"td_ip"}`, want: `{` + ip + `,` + randomUUID + `}`},
		{name: "the address twice", event: `{"td_ip":"td_ip","a":1,"td\u005fip":"\u0074d_ip"}`, want: `{"a":1,` + ip + `,` + randomUUID + `}`},
		{name: "the global id", event: `{"a":1,"td_global_id":"td_global_id"}`, want: `{"a":1,` + global + `,` + randomUUID + `}`},
		{name: "both", event: `{"td_global_id":"td_global_id","td_ip":"td_ip"}`, want: `{` + ip + `,` + global + `,` + randomUUID + `}`},
		{name: "the global id without a cookie", event: `{"td_global_id":"td_global_id","td_ip":"td_ip"}`, from: &Caller{}, want: `{"td_ip":"",` + randomUUID + `}`},
		{name: "from the User-Agent", event: `{` + agent + `,"a":1}`, want: `{"a":1,` + randomUUID + `}`},
		{name: "another value", event: `{"td_ip":"10.0.0.1","td_os":"Linux","td_browser":null,"TD_IP":"td_ip"}`, want: `{"td_ip":"10.0.0.1","td_os":"Linux","td_browser":null,"TD_IP":"td_ip",` + randomUUID + `}`},
		{name: "not inside", event: `{"a":{"td_ip":"td_ip"},"b":["td_os"]}`, want: `{"a":{"td_ip":"td_ip"},"b":["td_os"],` + randomUUID + `}`},
		{name: "alone", event: `{"uuid":1,"td_ip":"td_ip",` + keen + `}`, alone: `{"uuid":1,` + ip + `,"td_record_time":1795573435}`},
		{name: "the column for the arrival", event: `{"td_ip":"td_ip","#SSUT":"td_ip"}`, want: `{"td_ip":1800000000,` + randomUUID + `}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := keenReader(time.Unix(testArrival, 0))
			r.From = Caller{IP: "192.0.2.7", GlobalID: `g"7`}
			if tc.from != nil {
				r.From = *tc.from
			}
			k, refused := r.Read([]byte(`{"db.tbl":[`+tc.event+`,{}]}`), true)
			if refused != nil {
				t.Fatal(refused.Message)
			}
			events := k.Collections[0].Events
			if e := events[0]; string(e.Record) != tc.want+tc.alone || e.Alone != (tc.alone != "") {
				t.Errorf("got %s, alone %v\nwant %s", e.Record, e.Alone, tc.want+tc.alone)
			}
			if string(events[1].Record) != `{`+randomUUID+`}` {
				t.Errorf("behind it is %s", events[1].Record)
			}
		})
	}
}

func FuzzKeen(f *testing.F) {
	for _, seed := range []string{
		`{"db.tbl":[{"keen":{"timestamp":"2026-11-25T02:23:55.675+0000"},"#UUID":"08289530-0000-4000-8000-00000000000a","n":0},{}],"db1.tbl1":[{"#SSUT":true}]}`,
		`{"a.b":[{"#SSUT":"col","COL":1,"c\u006fl":2},{"#SSUT":"time","time":1},{"#SSUT":"uuid"},{"#SSUT":"td_record_time","uuid":1}]}`,
		"{\"a.b\" : [ {\"time\":1795573435 , \"\\u0023UUID\" : \"x\\\"\" } , 1 , [ ] ,\"\\\\\",null,-1e5 ] , \"\" : [{}] }\n",
		`{"a.b":[{"UUID":1,"keen":{"timestamp":"Wed, 25 Nov 2026 02:23:55 GMT"}},{"Time":1,"keen":{"timestamp":"2026-11-25T11:23:55+09:00"}},{"td_record_time":1,"uuid":1}]}`,
		`{"a.b":[{"a":[[[{"b":{}}]]],"keen":{"timestamp":"x","timestamp":"2026-11-25T11:23:55.5Z"},"keen":1}]}`, "\ufeff{\"a.b\":[{\"\xff\":1}]}", `{"a":1}`, `{}`, `[`,
		`{"a.b":[{"td_ip":"td_ip","td_os":"td_o\u0073","#SSUT":"td_ip"},{"a":1,"td_ip":"td_ip","td_global_id":"td_global_id"},{"td_ip":"td_ip","uuid":1}]}`,
	} {
		f.Add([]byte(seed), true, int64(testArrival))
		f.Add([]byte(seed), false, int64(1_000_000_000))
	}
	f.Fuzz(func(t *testing.T, body []byte, marked bool, seconds int64) {
		arrival := time.Unix(seconds&(1<<32-1), 0)
		k, refused := keenReader(arrival).Read(body, marked)
		text := AppendMended(nil, bytes.TrimPrefix(body, []byte("\ufeff")))
		want, ok := modelOfKeen(t, text, marked)
		if ok != (refused == nil) {
			t.Fatalf("%q: refused %+v", body, refused)
		}
		if !ok {
			return
		}
		if len(k.Collections) != len(want) {
			t.Fatalf("%d collections of %q", len(k.Collections), body)
		}
		for i, c := range k.Collections {
			checkKeenCollection(t, &c, want[i], arrival)
		}
		checkKeenAnswer(t, k, want)
		for _, b := range k.Batches(MaxBatchBytes) {
			kept, _ := b.ToKeep(benchKey, "v2", arrival)
			if read, ok := ReadKeptBatch(kept.Append(nil)); !ok || !reflect.DeepEqual(read, kept) {
				t.Errorf("%q is kept as %q", kept, read)
			}
		}
	})
}

// modelCollection is a collection as encoding/json reads it.
type modelCollection struct {
	name   string
	events []json.RawMessage
}

func modelOfKeen(t *testing.T, text []byte, marked bool) (collections []modelCollection, ok bool) {
	if !json.Valid(text) || len(bytes.TrimLeft(text, jsonSpace)) == 0 || bytes.TrimLeft(text, jsonSpace)[0] != '{' {
		return nil, false
	}
	for _, m := range rawMembers(t, text) {
		c := modelCollection{name: m.name}
		if m.value[0] != '[' || json.Unmarshal([]byte(m.value), &c.events) != nil || !marked && strings.Count(m.name, ".") != 1 {
			return nil, false
		}
		collections = append(collections, c)
	}
	return collections, len(collections) > 0
}

func checkKeenCollection(t *testing.T, c *KeenCollection, want modelCollection, arrival time.Time) {
	t.Helper()
	parts := regexp.MustCompile(`^([A-Za-z0-9_]+)\.([A-Za-z0-9_]+)\z`).FindStringSubmatch(want.name)
	if parts == nil {
		parts = make([]string, 3)
	}
	if (c.Destination != Destination{parts[1], parts[2]}) || len(c.Events) != len(want.events) {
		t.Fatalf("%q is read as %+v with %d events", want.name, c.Destination, len(c.Events))
	}
	for i, e := range c.Events {
		event := want.events[i]
		switch {
		case c.Database == "":
			if e.Fault != KeenBadName || e.Record != nil {
				t.Errorf("%q: %+v", want.name, e)
			}
		case event[0] != '{':
			if e.Fault != KeenNoObject || e.Record != nil {
				t.Errorf("%q: %+v", event, e)
			}
		case e.Fault != 0:
			if e.Fault != KeenTooLarge || len(event) < MaxBatchRecord {
				t.Errorf("%q: %+v", event, e)
			}
		case len(event) < MaxBatchRecord-200:
			checkKeenEvent(t, event, &e, arrival)
		}
	}
}

// checkKeenEvent says by the members that encoding/json reads what an event must be.
func checkKeenEvent(t *testing.T, event []byte, e *KeenEvent, arrival time.Time) {
	t.Helper()
	sdk := map[string]string{}
	var kept []rawMember
	for _, m := range rawMembers(t, event) {
		if m.name == "keen" || m.name == "#UUID" || m.name == "#SSUT" {
			sdk[m.name] = m.value
		} else {
			kept = append(kept, m)
		}
	}
	column := ""
	if json.Unmarshal([]byte(sdk["#SSUT"]), &column) == nil && column != "" && PlausibleTime(arrival) {
		kept = slices.DeleteFunc(kept, func(m rawMember) bool { return lowerASCII(m.name) == lowerASCII(column) })
	}
	now := strconv.FormatInt(arrival.Unix(), 10)
	all := kept
	if column != "" && PlausibleTime(arrival) {
		all = append(slices.Clip(kept), rawMember{column, now})
	} else {
		column = ""
	}
	var times []rawMember
	alone, recordTime := false, false
	for _, m := range all {
		alone = alone || depthOfText(m.value) >= maxNesting
		switch lowerASCII(m.name) {
		case "uuid":
			alone = true
		case "td_record_time":
			recordTime = true
		case "time":
			times = append(times, m)
		}
	}
	odd := len(times) > 1 || len(times) == 1 && (times[0].name != "time" || !regexp.MustCompile(`^[0-9]{1,10}$`).MatchString(times[0].value))
	device, hasTime := modelOfTime(sdk["keen"])
	if sdk["#SSUT"] == "true" || device < 0 || PlausibleTime(arrival) && device > arrival.Unix()+3*24*3600 {
		hasTime = false
	}
	want, fills := []rawMember(nil), false
	for _, m := range kept {
		var value string
		isText := m.value[0] == '"' && json.Unmarshal([]byte(m.value), &value) == nil
		if !isText || value != m.name || !slices.Contains(placeholders[:], value) {
			want = append(want, m)
		}
		fills = fills || isText && value == m.name && value == "td_ip"
	}
	if fills {
		want = append(want, rawMember{"td_ip", `"192.0.2.7"`})
	}
	if alone = alone || odd; e.Alone != alone {
		t.Fatalf("%q: alone %v", event, e.Alone)
	}
	switch text := strconv.FormatInt(device, 10); {
	case alone && hasTime && (len(times) == 0 || odd) && !recordTime:
		want = append(want, rawMember{"td_record_time", text})
	case !alone && hasTime && len(times) == 0:
		want = append(want, rawMember{"time", text})
	}
	if column != "" {
		want = append(want, rawMember{column, now})
	}
	got := rawMembers(t, e.Record)
	if !alone {
		last := got[len(got)-1]
		if last.name != "uuid" || !regexp.MustCompile(`^"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"$`).MatchString(last.value) {
			t.Fatalf("%q has become %q", event, e.Record)
		}
		var id string
		_ = json.Unmarshal([]byte(sdk["#UUID"]), &id)
		if regexp.MustCompile(`^(?i)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\z`).MatchString(id) && last.value != `"`+strings.ToLower(id)+`"` {
			t.Errorf("%q has become %q", event, e.Record)
		}
		got = got[:len(got)-1]
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%q has become %q\nwant %q", event, e.Record, want)
	}
}

// depthOfText is how many brackets are open at a time in a value.
func depthOfText(value string) (deepest int) {
	depth := 0
	d := json.NewDecoder(strings.NewReader(value))
	for token, err := d.Token(); err == nil; token, err = d.Token() {
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
			deepest = max(deepest, depth)
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
	}
	return deepest
}

// modelOfTime reads the timestamp by regular expressions and arithmetic.
func modelOfTime(keen string) (seconds int64, ok bool) {
	if keen == "" || keen[0] != '{' {
		return 0, false
	}
	var text string
	d := json.NewDecoder(strings.NewReader(keen))
	_, _ = d.Token()
	for d.More() {
		name, _ := d.Token()
		var value json.RawMessage
		_ = d.Decode(&value)
		if name == "timestamp" {
			text = ""
			_ = json.Unmarshal(value, &text)
		}
	}
	for _, layout := range []string{time.RFC1123Z, "Mon, 02 Jan 2006 15:04:05 GMT", "Mon, 02 Jan 2006 15:04:05 UTC"} {
		if at, err := time.Parse(strings.Replace(layout, "02", "_2", 1), text); err == nil {
			return at.Unix(), true
		}
	}
	parts := regexp.MustCompile(`^(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(\.\d+)?(Z|([+-])(\d\d):?(\d\d))\z`).FindStringSubmatch(text)
	if parts == nil {
		return laxTime(text)
	}
	n := make([]int, len(parts))
	for i, part := range parts {
		n[i], _ = strconv.Atoi(part)
	}
	at := time.Date(n[1], time.Month(n[2]), n[3], n[4], n[5], n[6], 0, time.UTC)
	if at.Format("2006-01-02T15:04:05") != text[:19] || n[10] > 23 || n[11] > 59 {
		return laxTime(text)
	}
	offset := int64(n[10]*3600 + n[11]*60)
	if parts[9] == "-" {
		offset = -offset
	}
	return at.Unix() - offset, true
}

// laxTime reads what is nearly RFC 3339, as package time does: an hour of one digit,
// a comma for the fraction, an offset of 24 hours.
func laxTime(text string) (seconds int64, ok bool) {
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05Z0700"} {
		if at, err := time.Parse(layout, text); err == nil {
			return at.Unix(), true
		}
	}
	return 0, false
}

// checkKeenAnswer reads an answer as a client does.
func checkKeenAnswer(t *testing.T, k *Keen, want []modelCollection) {
	t.Helper()
	answer := k.AppendAnswer(nil)
	results := rawMembers(t, answer)
	if len(results) != len(want) {
		t.Fatalf("answered %q", answer)
	}
	for i, result := range results {
		var events []struct{ Success bool }
		if err := json.Unmarshal([]byte(result.value), &events); err != nil || result.name != want[i].name || len(events) != len(want[i].events) {
			t.Fatalf("answered %q, %v", answer, err)
		}
		for n, event := range events {
			if event.Success != (k.Collections[i].Events[n].Fault == 0) {
				t.Errorf("answered %q", answer)
			}
		}
	}
}

// TestKeenLinear: see TestLinear.
func TestKeenLinear(t *testing.T) {
	for _, part := range []string{
		`{},`, `0,`, `"\"",`, `"x",`, `[],`, `{"#SSUT":"a","a":1},`, `{"keen":{"timestamp":"x"}},`, `{"#UUID":"\u0041"},`, `{"a":"\u0041","keen":1},`,
	} {
		in := func(before, after string) {
			t.Run(before+part, func(t *testing.T) {
				checkLinear(t, func(n int) func() {
					body := []byte(before + strings.Repeat(part, n/len(part)) + "0" + after)
					answer := make([]byte, 0, 256*n/len(part)) // new memory takes a time of its own
					return func() {
						k, refused := keenReader(time.Unix(testArrival, 0)).Read(body, true)
						if refused != nil {
							t.Fatal(refused.Message)
						}
						answer = k.AppendAnswer(answer[:0])
						k.Batches(MaxBatchBytes)
					}
				})
			})
		}
		in(`{"a.b":[`, `]}`)
		in(`{"a.b":[{"keen":[`, `],"a":1}]}`)
		in(`{"a.b":[{"keen":{"x":[`, `]}}]}`)
	}
	for _, part := range []string{`"a.b":[],`, `"":[],`, `"\u0041":[0],`} {
		t.Run(part, func(t *testing.T) {
			checkLinear(t, func(n int) func() {
				body := []byte("{" + strings.Repeat(part, n/len(part)) + `"a.b":[]}`)
				return func() { _, _ = keenReader(time.Unix(testArrival, 0)).Read(body, true) }
			})
		})
	}
	for _, part := range []string{`"a":1,`, `"keen":1,"a":1,`, `"\u0041":1,`, `"time":1,`, `"#UUID":"x",`, `"#SSUT":"a",`, `"keen":{"timestamp":"2026-11-25T02:23:55Z"},`} {
		t.Run("{"+part, func(t *testing.T) {
			checkLinear(t, func(n int) func() {
				body := []byte(`{"a.b":[{` + strings.Repeat(part, n/len(part)) + `"#SSUT":"\u0062"}]}`)
				return func() { _, _ = keenReader(time.Unix(testArrival, 0)).Read(body, true) }
			})
		})
	}
}

// keenBody400 is what Android sends at once: 400 events of about 300 bytes.
func keenBody400() []byte {
	var body bytes.Buffer
	body.WriteString(`{"shop.views":[`)
	for i := range 400 {
		if i > 0 {
			body.WriteByte(',')
		}
		fmt.Fprintf(&body, `{"keen":{"timestamp":"2026-11-25T02:23:55.%03d+0000"},"#UUID":"08289530-1111-4222-8333-%012x","event":"view","user":%d,"session":"5f0c7b6e-7d1e-4b7a-9c55-0d3a1a3a6f10","page_url":"https://shop.example/item?id=7","title":"Caf\u00e9 noir","price":12.5,"tags":["a","b"],"new":true,"lat":35.6}`, i, i, i)
	}
	body.WriteString("]}")
	return body.Bytes()
}

// TestKeenAllocations bounds what a request allocates, whatever its events.
func TestKeenAllocations(t *testing.T) {
	body, r := keenBody400(), keenReader(time.Unix(testArrival, 0))
	if n := testing.AllocsPerRun(20, func() { _, _ = r.Read(body, true) }); n > 30 {
		t.Errorf("%v allocations", n)
	}
	k, _ := r.Read(body, true)
	if n := testing.AllocsPerRun(20, func() {
		for _, b := range k.Batches(MaxBatchBytes) {
			b.Records()
		}
	}); n > 3 {
		t.Errorf("%v allocations for batches", n)
	}
}

func BenchmarkKeen(b *testing.B) {
	body := keenBody400()
	r := keenReader(time.Unix(testArrival, 0))
	perEvent := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/400, "ns/event")
	}
	b.Run("valid", func(b *testing.B) {
		for b.Loop() {
			json.Valid(body)
		}
		perEvent(b)
	})
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if k, _ := r.Read(body, true); len(k.Batches(MaxBatchBytes)[0].Records()) != 400 {
				b.Fatal("not 400 events")
			}
		}
		perEvent(b)
	})
	k, _ := r.Read(body, true)
	batch := k.Batches(MaxBatchBytes)[0]
	b.Run("answer", func(b *testing.B) {
		dst := make([]byte, 0, 16<<10)
		b.ReportAllocs()
		for b.Loop() {
			dst = k.AppendAnswer(dst[:0])
		}
		perEvent(b)
	})
	kept, _ := batch.ToKeep(benchKey, "v2", r.Arrival)
	data := kept.Append(nil)
	b.Run("keep", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			kept, _ := batch.ToKeep(benchKey, "v2", r.Arrival)
			data = kept.Append(data[:0])
		}
		perEvent(b)
	})
	b.Run("read kept", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if kept, ok := ReadKeptBatch(data); !ok || len(kept.Records) != 400 {
				b.Fatal("not 400 events")
			}
		}
		perEvent(b)
	})
}

// TestKeenTables reads the tables of bodies, each once.
func TestKeenTables(t *testing.T) {
	many := strings.Repeat(`"a.b":[],`, 1000)
	for _, tc := range []struct{ name, body, want string }{
		{"one", `{"db.tbl":[{"a":1}]}`, "db.tbl"},
		{"several, one of them twice", " {\n\"a.b\" : [{\"c.d\":[]}] , \"c.d\":[],\"a.b\":[]}", "a.b c.d"},
		{"a thousand times the same", `{` + many + `"c.d":[]}`, "a.b c.d"},
		{"an escape in a name", `{"a\u002eb":[]}`, "a.b"},
		{"a byte-order mark", "\ufeff" + `{"a.b":[]}`, "a.b"},
		{"a bad name beside a good one", `{"a b.c":[1],"a.b":[],"":[]}`, ". a.b"},
		{"a name that is too long", `{"` + strings.Repeat("a", maxKeenText) + `.b":[]}`, "."},
		{"no collection", `{}`, ""},
		{"no arrays", `{"a.b":[],"c.d":1}`, ""},
		{"no JSON", `{"a.b":[`, ""},
		{"an array", `[{"a.b":[]}]`, ""},
		{"nothing", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tables, held := keenReader(time.Now()).Tables([]byte(tc.body))
			var got []string
			for _, to := range tables {
				got = append(got, to.Database+"."+to.Table)
			}
			if strings.Join(got, " ") != tc.want || !held {
				t.Errorf("got %q, %v", got, held)
			}
		})
	}
	none := &KeenReader{Hold: func(int) bool { return false }}
	if tables, held := none.Tables([]byte(`{"a.b":[]}`)); held || len(tables) > 0 {
		t.Errorf("without memory, got %q, %v", tables, held)
	}
}

// FuzzKeenTables: the tables are those of the collections that Read finds, each once.
func FuzzKeenTables(f *testing.F) {
	for _, seed := range []string{`{"a.b":[{}],"c.d":[1],"a.b":[]}`, `{"a.b":1}`, "\ufeff{\"\xff.b\":[]}", `{`, `{"":[],"a\u002eb":[]}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		reader := keenReader(time.Unix(testArrival, 0))
		tables, held := reader.Tables(body)
		k, refused := reader.Read(body, true)
		if !held {
			t.Fatal("it is held")
		}
		if refused != nil {
			return // for an event, perhaps
		}
		var want []Destination
		for _, c := range k.Collections {
			if !slices.Contains(want, c.Destination) {
				want = append(want, c.Destination)
			}
		}
		if !slices.Equal(tables, want) {
			t.Errorf("%q is for %q, want %q", body, tables, want)
		}
	})
}
