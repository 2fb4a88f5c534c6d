package postback

import (
	"regexp"
	"strings"
	"testing"
)

func TestParsePath(t *testing.T) {
	const wrongName = "must be letters, digits and _"
	for _, tc := range []struct {
		name, path string
		surface    Surface // without one, Postback, or none if the path is not found
		want       Destination
		code, says string // of the refusal
	}{
		{name: "canonical", path: "/postback/v3/event/db/tbl", want: Destination{"db", "tbl"}},
		{name: "every allowed byte", path: "/postback/v3/event/aZ09_/_", want: Destination{"aZ09_", "_"}},
		{name: "trailing slash", path: "/postback/v3/event/db/tbl/", want: Destination{"db", "tbl"}},
		{name: "leading run of slashes", path: "///postback/v3/event/db/tbl", want: Destination{"db", "tbl"}},
		{name: "runs of slashes everywhere", path: "//postback///v3//event/db////tbl", want: Destination{"db", "tbl"}},
		{name: "trailing run of slashes", path: "/postback/v3/event/db/tbl//", want: Destination{"db", "tbl"}},

		{name: "root", path: "/", code: "not_found"},
		{name: "empty", path: "", code: "not_found"},
		{name: "asterisk", path: "*", code: "not_found"},
		{name: "only looks like the prefix", path: "/postbacks/v3/event/db/tbl", code: "not_found"},
		{name: "prefix without slash", path: "/postback", code: "not_found"},
		{name: "other case", path: "/Postback/v3/event/db/tbl", code: "not_found"},
		{name: "prefix further in", path: "/x/postback/v3/event/db/tbl", code: "not_found"},

		{name: "JavaScript", path: "/js/v3/event/db/tbl", surface: SurfaceJS, want: Destination{"db", "tbl"}},
		{name: "JavaScript, slashes", path: "//js/v3//event/db/tbl/", surface: SurfaceJS, want: Destination{"db", "tbl"}},
		{name: "JavaScript, no table", path: "/js/v3/event/db", surface: SurfaceJS, want: Destination{Database: "db"}, code: "invalid_path", says: "table name is missing"},
		{name: "JavaScript, bad name", path: "/js/v3/event/db/t-1", surface: SurfaceJS, want: Destination{Database: "db"}, code: "invalid_path", says: "table name"},
		{name: "JavaScript, other version", path: "/js/v4/event/db/tbl", code: "not_found"},
		{name: "JavaScript, no event", path: "/js/v3/db/tbl", code: "not_found"},
		{name: "only looks like JavaScript", path: "/js/v3/events/db/tbl", code: "not_found"},
		{name: "several events", path: "/js/v3/event", surface: SurfaceJS},
		{name: "several events, slash", path: "/js/v3/event/", surface: SurfaceJS},
		{name: "Android", path: "/android/v3/event", surface: SurfaceMobile},
		{name: "Android, slashes", path: "//android/v3//event/", surface: SurfaceMobile},
		{name: "iOS", path: "/ios/v3/event", surface: SurfaceMobile},
		{name: "iOS, slash", path: "/ios/v3/event/", surface: SurfaceMobile},
		{name: "iOS with a table", path: "/ios/v3/event/db/tbl", surface: SurfaceMobile, code: "invalid_path", says: "in the body"},
		{name: "only looks like Android", path: "/android/v3/events", code: "not_found"},
		{name: "global id", path: "/js/v3/global_id", code: "not_found", says: "no global id here"},
		{name: "global id, SDK 3", path: "/js/v3/enable_global_id", code: "not_found", says: "no global id here"},

		{name: "nothing after the prefix", path: "/postback/", code: "invalid_path", says: "start with /postback/v3/event/"},
		{name: "other version", path: "/postback/v4/event/db/tbl", code: "invalid_path", says: "start with /postback/v3/event/"},
		{name: "no event", path: "/postback/v3/db/tbl", code: "invalid_path", says: "start with /postback/v3/event/"},
		{name: "neither name", path: "/postback/v3/event/", code: "invalid_path", says: "database name"},
		{name: "no table", path: "/postback/v3/event/db", want: Destination{Database: "db"}, code: "invalid_path", says: "table name is missing"},
		{name: "no table, slash", path: "/postback/v3/event/db/", want: Destination{Database: "db"}, code: "invalid_path", says: "table name is missing"},
		{name: "one part too many", path: "/postback/v3/event/db/tbl/x", want: Destination{"db", "tbl"}, code: "invalid_path", says: "nothing may follow"},
		{name: "one part too many, bad table", path: "/postback/v3/event/db/t-1/x", want: Destination{Database: "db"}, code: "invalid_path", says: "nothing may follow"},
		{name: "hyphen in database", path: "/postback/v3/event/my-db/tbl", want: Destination{Table: "tbl"}, code: "invalid_path", says: "database name " + wrongName},
		{name: "dot in table", path: "/postback/v3/event/db/t.b", want: Destination{Database: "db"}, code: "invalid_path", says: "table name " + wrongName},
		{name: "dot segments", path: "/postback/v3/event/../tbl", want: Destination{Table: "tbl"}, code: "invalid_path", says: "database name"},
		{name: "space in table", path: "/postback/v3/event/db/t b", want: Destination{Database: "db"}, code: "invalid_path", says: "table name"},
		{name: "not ASCII", path: "/postback/v3/event/db/täbel", want: Destination{Database: "db"}, code: "invalid_path", says: "table name"},
		{name: "line break", path: "/postback/v3/event/db/t\r\nX: y", want: Destination{Database: "db"}, code: "invalid_path", says: "table name"},
		{name: "query behind an ampersand", path: "/postback/v3/event/db/tbl&td_write_key=1", want: Destination{Database: "db"}, code: "invalid_path", says: "table name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			surface, got, refused := parsePath(tc.path)
			if tc.surface == SurfaceNone && tc.code != "not_found" {
				tc.surface = SurfacePostback
			}
			if surface != tc.surface {
				t.Errorf("surface %d, want %d", surface, tc.surface)
			}
			if tc.code != "" {
				if got != tc.want {
					t.Errorf("got %v, want %v", got, tc.want)
				}
				if refused == nil || refused.Code != tc.code || !strings.Contains(refused.Message, tc.says) {
					t.Fatalf("got %v, want %s with %q", refused, tc.code, tc.says)
				}
				return
			}
			if refused != nil || got != tc.want {
				t.Fatalf("got %v, %v", got, refused)
			}
		})
	}
}

// FuzzPath compares with the contract as one expression.
func FuzzPath(f *testing.F) {
	for _, seed := range []string{
		"/postback/v3/event/db/tbl", "//postback///v3/event/db//tbl/", "/postback/v3/event/db", "/postback/v3/event/db/tbl/x", "/postback", "/postback/",
		"/js/v3/event/db/tbl/", "/js/v3/event//", "/js/v3//event", "/android/v3/event/", "//ios/v3/event", "/ios/v3/event/db/tbl", "/js/v3/event/d-b/t", "/postback/v3/event/d-b/t", "/postback/v3/event/db/tbl//", "/postback/v3/event/db/\u0661", "/postback/v3/event/db/t\n", "", "postback/v3/event/db/tbl",
	} {
		f.Add(seed)
	}
	event := regexp.MustCompile(`^/+(?:postback|js)/+v3/+event/+([A-Za-z0-9_]+)/+([A-Za-z0-9_]+)/*$`)
	several := regexp.MustCompile(`^/+(?:js|android|ios)/+v3/+event/*$`)
	inside := regexp.MustCompile(`^/+(postback/|js/+v3/+event(?:/|$)|(?:android|ios)/+v3/+event(?:/|$))`)
	surfaces := map[byte]Surface{'p': SurfacePostback, 'j': SurfaceJS, 'a': SurfaceMobile, 'i': SurfaceMobile}
	f.Fuzz(func(t *testing.T, path string) {
		surface, got, refused := parsePath(path)
		want := SurfaceNone
		if found := inside.FindStringSubmatch(path); found != nil {
			want = surfaces[found[1][0]]
		}
		if surface != want {
			t.Errorf("%q: surface %d, want %d", path, surface, want)
		}
		names := event.FindStringSubmatch(path)
		switch {
		case names != nil:
			if refused != nil || got != (Destination{names[1], names[2]}) {
				t.Fatalf("%q: got %+v, %v", path, got, refused)
			}
			if canonical := (&Request{Destination: got}).path(); surface == SurfacePostback && IsCanonical(path, got) != (path == canonical) {
				t.Errorf("%q: canonical is %q", path, canonical)
			}
			if _, again, refused := parsePath((&Request{Destination: got}).path()); refused != nil || again != got {
				t.Errorf("%q: its canonical form leads to %+v, %v", path, again, refused)
			}
		case several.MatchString(path):
			if refused != nil || got != (Destination{}) {
				t.Errorf("%q: got %+v, %v", path, got, refused)
			}
		case refused == nil:
			t.Errorf("%q: taken as %+v", path, got)
		case refused.Code != "invalid_path" && inside.MatchString(path), refused.Code != "not_found" && !inside.MatchString(path):
			t.Errorf("%q: refused with %s", path, refused.Code)
		case got.Database != "" && !validName(got.Database), got.Table != "" && !validName(got.Table), got != (Destination{}) && !inside.MatchString(path):
			t.Errorf("%q: refused, and read as %+v", path, got)
		}
	})
}
