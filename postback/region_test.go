package postback

import (
	"regexp"
	"strings"
	"testing"
)

func TestRegionOf(t *testing.T) {
	for host, want := range map[string]string{
		"in.treasuredata.com":              "us01",
		"tokyo.in.treasuredata.com":        "ap01",
		"eu01.in.treasuredata.com":         "eu01",
		"ap02.in.treasuredata.com":         "ap02",
		"ap03.in.treasuredata.com":         "ap03",
		"in.treasuredata.com:80":           "us01",
		"In.TreasureData.COM":              "us01",
		"in.treasuredata.com.":             "us01",
		"TOKYO.in.treasuredata.com.:8080":  "ap01",
		"":                                 "",
		"localhost":                        "",
		"us01.records.in.treasuredata.com": "",
		"xin.treasuredata.com":             "",
		"in.treasuredata.com.evil.example": "",
		"us01.in.treasuredata.com":         "",
		"[::1]:80":                         "",
		"in.treasuredata.com:":             "us01",
		"[in.treasuredata.com]:80":         "",
		"[in.treasuredata.com]":            "",
		"in.treasuredata.com:abc":          "",
		"in.treasuredata.com:80:80":        "",
		"in.treasuredata.com:-1":           "",
		"in.treasuredata.com..":            "",
	} {
		if got, ok := RegionOf(host); got != want || ok != (want != "") {
			t.Errorf("%q: got %q, %v", host, got, ok)
		}
	}
}

func TestV2Hosts(t *testing.T) {
	for _, region := range []string{"us01", "ap01", "eu01", "ap02", "ap03"} {
		if want := region + ".records.in.treasuredata.com"; V2Host(region) != want {
			t.Errorf("%s: got %s", region, V2Host(region))
		}
		if LegacyHosts[region] == "" {
			t.Errorf("%s has no legacy host", region)
		}
	}
	if len(LegacyHosts) != 5 {
		t.Errorf("%d regions", len(LegacyHosts))
	}
}

// FuzzRegion compares with the published hosts: no other name has a region.
func FuzzRegion(f *testing.F) {
	for _, seed := range []string{
		"in.treasuredata.com", "TOKYO.in.treasuredata.com:80", "eu01.in.treasuredata.com.", "ap02.in.treasuredata.com.:443", "in.treasuredata.com:", "in.treasuredata.com..",
		"us01.records.in.treasuredata.com", "xin.treasuredata.com", "in.treasuredata.com:80:80", "in.trea\u017furedata.com", "",
	} {
		f.Add(seed)
	}
	published := map[string]string{
		"in.treasuredata.com": "us01", "tokyo.in.treasuredata.com": "ap01", "eu01.in.treasuredata.com": "eu01", "ap02.in.treasuredata.com": "ap02", "ap03.in.treasuredata.com": "ap03",
	}
	valid := regexp.MustCompile(`^([A-Za-z0-9.]*?)\.?(?::[0-9]*)?$`)
	f.Fuzz(func(t *testing.T, host string) {
		want := ""
		if name := valid.FindStringSubmatch(host); name != nil {
			want = published[strings.ToLower(name[1])]
		}
		if got, ok := RegionOf(host); got != want || ok != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", host, got, ok, want)
		}
	})
}
