package caddymodule

import (
	"testing"
)

func TestNearest(t *testing.T) {
	options := []string{"max_body", "max_conns", "max_buffered", "retries", "region", "mode", "dir", "redirect_hosts", "response_timeout"}
	for word, want := range map[string]string{
		"max_bdy": "max_body", "maxbody": "max_body", "MAX_BODY": "max_body", "max_conn": "max_conns", "max_bufferd": "max_buffered",
		"regoin": "region", "reigon": "region", "retry": "", "redirect_host": "redirect_hosts", "redirect": "redirect_hosts", "response": "response_timeout",
		"mdoe": "mode", "mod": "mode", "dri": "dir", "max": "", "m": "", "": "", "tls": "", "completely_else": "", "x": "",
	} {
		if got := nearest(word, options); got != want {
			t.Errorf("%q: got %q, want %q", word, got, want)
		}
	}
}

func TestNearestRegion(t *testing.T) {
	for value, want := range map[string]string{
		"tokyo": "ap01", "Tokyo": "ap01", "tokio": "ap01", "seoul": "ap02", "US01": "us01", "us1": "us01", "us10": "us01", "us": "us01", "eu": "eu01", "eu1": "eu01",
		"in.treasuredata.com": "us01", "tokyo.in.treasuredata.com": "ap01", "https://ap02.in.treasuredata.com/": "ap02",
		"eu01.records.in.treasuredata.com": "eu01", "https://us01.records.in.treasuredata.com/postback": "us01", "AUTO": "auto", "atuo": "auto",
		"us-east-1": "us01", "US-East-1": "us01", "eu-central-1": "eu01", "ap-northeast-1": "ap01", "ap-northeast-2": "ap02",
		"virginia": "us01", "N. Virginia": "us01", "frankfurt": "eu01", "Frankfurt": "eu01", "germany": "eu01",
		"ap-northeast-3": "", "osaka": "", "us-west-2": "", "eu-west-1": "", "ap-southeast-1": "", "us-east-2": "",
		"mars": "", "": "", "ap0": "", "ap04": "", "ap": "", "a": "", "staging.example.com": "",
	} {
		for range 5 { // whatever order the names come in
			if got := nearestRegion(value); got != want {
				t.Errorf("%q: got %q, want %q", value, got, want)
			}
		}
	}
}

// FuzzNearest checks what a distance must be.
func FuzzNearest(f *testing.F) {
	f.Add("max_body", "max_bdoy")
	f.Add("", "a")
	f.Fuzz(func(t *testing.T, a, b string) {
		steps := editSteps(a, b)
		switch longest := max(len(a), len(b)); {
		case longest > maxWord:
		case steps != editSteps(b, a), (steps == 0) != (a == b), steps > longest, steps < longest-min(len(a), len(b)):
			t.Errorf("%q, %q: %d steps", a, b, steps)
		}
		if got := nearest(a, []string{b}); got != "" && got != b {
			t.Errorf("%q: got %q", a, got)
		}
	})
}
