package postback

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestKeenCalls: which calls have several events, by path and method.
func TestKeenCalls(t *testing.T) {
	for _, tc := range []struct {
		method, path string
		served       Surfaces
		kind         Kind
		refused      *Refusal
		foreign      bool
	}{
		{"POST", "/js/v3/event", AllSurfaces, K, nil, false},
		{"POST", "/js/v3/event/", AllSurfaces, K, nil, false},
		{"POST", "/js/v3/event?data=e30=&callback=f", AllSurfaces, K, nil, false},
		{"POST", "/android/v3/event", AllSurfaces, Mobile, nil, false},
		{"POST", "/ios/v3/event/", AllSurfaces, Mobile, nil, false},
		{"POST", "/js/v3/event/db/tbl", AllSurfaces, JS, nil, false},
		{"GET", "/js/v3/event?data=e30=&callback=f", AllSurfaces, Other, PostOnly, false},
		{"HEAD", "/ios/v3/event", AllSurfaces, Other, PostOnly, false},
		{"OPTIONS", "/android/v3/event", AllSurfaces, Other, nil, false},
		{"POST", "/android/v3/event", SurfacesOf([]string{"postback", "js"}), Post, SurfaceOff, true},
		{"POST", "/js/v3/event", SurfacesOf([]string{"postback", "mobile"}), Post, SurfaceOff, true},
		{"POST", "/ios/v3/event", SurfacesOf([]string{"mobile"}), Mobile, nil, false},
	} {
		c, refused := ReadCall(httptest.NewRequest(tc.method, tc.path, nil), tc.served)
		if c.Kind != tc.kind || refused != tc.refused || c.Foreign != tc.foreign || c.IsKeen() != (tc.kind == K || tc.kind == Mobile) {
			t.Errorf("%s %s: %s, %v, foreign %v", tc.method, tc.path, c.Kind, refused, c.Foreign)
		}
	}
}

// TestKeenKey: where the key of such a call is found, and that nothing of its query
// goes on.
func TestKeenKey(t *testing.T) {
	for _, tc := range []struct {
		query  string
		header http.Header
		key    string
		source KeySource
	}{
		{"", http.Header{"X-Td-Write-Key": {"1/a"}}, "1/a", KeyHeader},
		{"td_write_key=2/b&api_key=3/c", http.Header{"X-Td-Write-Key": {"1/a"}, "Authorization": {"TD1 4/d"}}, "1/a", KeyHeader},
		{"td_write_key=2/b&api_key=3/c", http.Header{"Authorization": {"TD1 4/d"}}, "2/b", KeyParam},
		{"api_key=3%2Fc&modified=1", http.Header{"Authorization": {"TD1 4/d"}}, "3/c", KeyParam},
		{"", http.Header{"Authorization": {"td1 4/d"}}, "4/d", KeyTD1},
	} {
		c, _ := ReadCall(httptest.NewRequest(http.MethodPost, "/android/v3/event?"+tc.query, nil), AllSurfaces)
		if refused := c.ReadKey(tc.query, tc.header); refused != nil || c.Key() != tc.key || c.Source != tc.source || c.Query != "" {
			t.Errorf("%q %v: %q from %s, %v, query %q", tc.query, tc.header, c.Key(), c.Source, refused, c.Query)
		}
	}
}

// TestKeenCount: what is told of a request as a whole.
func TestKeenCount(t *testing.T) {
	for body, want := range map[string]struct {
		events, faults int
		to             Destination
		fault          KeenFault
		of             Destination
	}{
		`{"db.tbl":[{},{}]}`:                         {2, 0, Destination{"db", "tbl"}, 0, Destination{}},
		`{"db.tbl":[{}],"db.tbl":[1]}`:               {2, 1, Destination{"db", "tbl"}, KeenNoObject, Destination{"db", "tbl"}},
		`{"db.a":[{}],"db.b":[]}`:                    {1, 0, Destination{"db", ""}, 0, Destination{}},
		`{"a.t":[{}],"b.t":[{}]}`:                    {2, 0, Destination{}, 0, Destination{}},
		`{"no table":[{},{}]}`:                       {2, 2, Destination{}, KeenBadName, Destination{}},
		`{"db.a":[{}],"no table":[1],"db.b":[null]}`: {3, 2, Destination{}, KeenBadName, Destination{}},
	} {
		k := readKeen(t, body)
		events, faults := k.Count()
		fault, of := k.FirstFault()
		if events != want.events || faults != want.faults || k.Destination() != want.to || fault != want.fault || of != want.of {
			t.Errorf("%s: %d events, %d faults, %+v, %d of %+v", body, events, faults, k.Destination(), fault, of)
		}
	}
	k := readKeen(t, `{"db.tbl":[{}]}`)
	k.Collections[0].Events[0].Fault = KeenRefused
	if fault, _ := k.FirstFault(); fault != 0 {
		t.Errorf("v2's own refusal is told as %s", fault)
	}
	for value, want := range map[string]bool{"k": true, "K": false, "": false, "kk": false} {
		if IsMarkedKeen(http.Header{"X-Td-Data-Type": {value}}) != want {
			t.Errorf("%q is marked: %v", value, !want)
		}
	}
}
