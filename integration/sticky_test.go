package integration

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// lanes sends one event of each value, over a few connections, and returns the lane of
// each. request makes a POST's target and its headers of a value.
func (s *laneSite) lanes(t *testing.T, values []string, request func(value string) (target, headers string)) map[string]string {
	t.Helper()
	ids := make([]string, len(values))
	var next atomic.Int64
	var callers sync.WaitGroup
	for range 16 {
		callers.Go(func() {
			own := caller{addr: s.plain}
			defer own.close()
			for n := int(next.Add(1)) - 1; n < len(values) && !t.Failed(); n = int(next.Add(1)) - 1 {
				ids[n] = s.newID()
				own.target, own.headers = request(values[n])
				if answer, err := own.send(withID(ids[n])); err != nil || answer.StatusCode != http.StatusOK {
					t.Errorf("%s: got %v, %v", values[n], answer, err)
				}
			}
		})
	}
	callers.Wait()
	if t.Failed() {
		t.FailNow()
	}
	lanes := make(map[string]string, len(values))
	for n, value := range values {
		lanes[value] = s.lane(t, ids[n])
	}
	return lanes
}

// sticky is what a share may stick to, and how its values are sent.
type sticky struct {
	stick, rule string
	values      int
	within      float64 // the real share is as near to what was asked for, in points
	value       func(n int) string
	request     func(value string) (target, headers string)
}

var stickies = []sticky{
	{
		"client", "shop.orders", 10_000, 1,
		func(n int) string { return fmt.Sprintf("10.%d.%d.%d", n>>16, n>>8&255, n&255) },
		func(value string) (target, headers string) {
			return "/postback/v3/event/shop/orders?td_write_key=" + spoolKey, "X-Forwarded-For: " + value + "\r\n"
		},
	},
	{
		"key", "shop.orders", 2_000, 2,
		func(n int) string { return fmt.Sprintf("%d/%s%04x", 1000+n%7, spoolSecret, n) },
		func(value string) (target, headers string) {
			return "/postback/v3/event/shop/orders", "X-TD-Write-Key: " + value + "\r\n"
		},
	},
	{
		"table", "shop.*", 2_000, 2,
		func(n int) string { return fmt.Sprint("orders", n) },
		func(value string) (target, headers string) {
			return "/postback/v3/event/shop/" + value + "?td_write_key=" + spoolKey, ""
		},
	},
}

// TestSticky sends events of many clients, keys or tables: each goes by one lane, again
// and again, over a restart too. A share that is raised only adds, one that is lowered
// only removes, and the real share is the one that was asked for.
func TestSticky(t *testing.T) {
	t.Parallel()
	for _, tc := range stickies {
		t.Run(tc.stick, func(t *testing.T) {
			t.Parallel()
			s, p := serveLanes(t, believed, "stick "+tc.stick)
			values := make([]string, tc.values)
			for n := range values {
				values[n] = tc.value(n)
			}
			change(t, s.admin, "share", share(tc.rule, "", "12.34"))
			few := s.lanes(t, values, tc.request)
			if real := percentOf(few, "v2"); real < 12.34-tc.within || real > 12.34+tc.within {
				t.Errorf("%.2f %% go to v2 at 12.34 %%", real)
			}
			p.stop()
			s.start(t, 0)
			change(t, s.admin, "share", share(tc.rule, "", "45.67"))
			more := s.lanes(t, values[:2000], tc.request)
			if real := percentOf(more, "v2"); real < 42.5 || real > 49 {
				t.Errorf("%.2f %% go to v2 at 45.67 %%", real)
			}
			for value, lane := range more {
				if few[value] == "v2" && lane != "v2" {
					t.Errorf("%s went to v2, and does not since the share is larger", value)
				}
			}
			change(t, s.admin, "rollback", "")
			if held := s.lanes(t, values[:200], tc.request); percentOf(held, "v2") != 0 {
				t.Errorf("%v %% go to v2 under a hold", percentOf(held, "v2"))
			}
			change(t, s.admin, "resume", "")
			change(t, s.admin, "undo", "")
			some := maps.Clone(few)
			maps.DeleteFunc(some, func(value, _ string) bool { return !slices.Contains(values[:1000], value) })
			if again := s.lanes(t, values[:1000], tc.request); !maps.Equal(again, some) {
				t.Error("not each goes where it went at the same share before")
			}
		})
	}
}

func percentOf(lanes map[string]string, lane string) float64 {
	n := 0
	for _, one := range lanes {
		if one == lane {
			n++
		}
	}
	return 100 * float64(n) / float64(len(lanes))
}

// TestStickyCalls: a client goes by one lane in whatever form it sends, and the published
// bucket of an address is the one that counts.
func TestStickyCalls(t *testing.T) {
	t.Parallel()
	s, _ := serveLanes(t, believed, "")
	const key, js = "?td_write_key=" + spoolKey, "/js/v3/event/shop/orders"
	forms := map[string]func(id, from string) string{
		"POST": func(id, from string) string {
			return post("/postback/v3/event/shop/orders"+key, from+asJSON, withID(id))
		},
		"POST, the key in a header": func(id, from string) string {
			return post("//postback/v3/event/shop//orders", from+"X-TD-Write-Key: "+spoolKey+"\r\n", withID(id))
		},
		"in chunks": func(id, from string) string {
			return "POST /postback/v3/event/shop/orders" + key + " HTTP/1.1\r\nHost: x\r\n" + from + "Transfer-Encoding: chunked\r\n\r\n" + chunksOf(withID(id), 5) + "0\r\n\r\n"
		},
		"HTTP/1.0": func(id, from string) string {
			return strings.Replace(post("/postback/v3/event/shop/orders"+key, from, withID(id)), "HTTP/1.1", "HTTP/1.0", 1)
		},
		"GET": func(id, from string) string { return get("/postback/v3/event/shop/orders"+key+"&id="+id, from) },
		"a pixel": func(id, from string) string {
			return get("/postback/v3/event/shop/orders"+key+"&td_format=pixel&id="+id, from)
		},
		"a beacon": func(id, from string) string { return post("/postback/v3/event/%73hop/orders/"+key+"&id="+id, from, "") },
		"JSONP": func(id, from string) string {
			return get(js+"?api_key="+spoolKey+jsData(withID(id))+"&callback=cb", from)
		},
		"several":  func(id, from string) string { return post(androidPath, from+ofAndroid, keenBody("shop.orders", id)) },
		"JS, POST": func(id, from string) string { return post(js+"?api_key="+spoolKey, from+asJSON, withID(id)) },
	}
	for percent, lane := range map[string]string{"18.66": "legacy", "18.67": "v2"} {
		change(t, s.admin, "share", share("shop.orders", "", percent))
		for _, address := range []string{"203.0.113.7", "::ffff:203.0.113.7"} {
			for form, request := range forms {
				id := s.newID()
				if answer := raw(t, s.plain, request(id, "X-Forwarded-For: "+address+"\r\n")); answer.StatusCode != http.StatusOK {
					t.Errorf("%s of %s: got %d %q", form, address, answer.StatusCode, answer.body)
				}
				if got := s.lane(t, id); got != lane {
					t.Errorf("%s of %s at %s %% goes to %s", form, address, percent, got)
				}
			}
		}
	}
}

// TestStickyForged: who is no proxy cannot choose a lane by an address of another's.
func TestStickyForged(t *testing.T) {
	t.Parallel()
	s, _ := serveLanes(t, "", "")
	change(t, s.admin, "share", share("shop.orders", "", "50"))
	values := make([]string, 100)
	for n := range values {
		values[n] = stickies[0].value(n)
	}
	if v2 := percentOf(s.lanes(t, values, stickies[0].request), "v2"); v2 != 0 && v2 != 100 {
		t.Errorf("%v %% of one client's go to v2", v2)
	}
}
