package postback

import (
	"sort"
	"strings"
)

// RegionAuto is the region option's value for "the region of the legacy host
// that the caller used".
const RegionAuto = "auto"

// LegacyHosts has the host of the legacy Postback API in each region, as
// published with the two contracts (see docs/requests.md, "Regions").
var LegacyHosts = map[string]string{
	"us01": "in.treasuredata.com",
	"ap01": "tokyo.in.treasuredata.com",
	"eu01": "eu01.in.treasuredata.com",
	"ap02": "ap02.in.treasuredata.com",
	"ap03": "ap03.in.treasuredata.com",
}

// regionOfLegacyHost has the region of each legacy host.
var regionOfLegacyHost = func() map[string]string {
	regions := make(map[string]string, len(LegacyHosts))
	for region, host := range LegacyHosts {
		regions[host] = region
	}
	return regions
}()

// RegionNames lists the regions, sorted, for messages.
func RegionNames() string {
	names := make([]string, 0, len(LegacyHosts))
	for region := range LegacyHosts {
		names = append(names, region)
	}
	sort.Strings(names)
	return strings.Join(names, ", ")
}

// AllowedRegions is what the region option may be, for messages.
func AllowedRegions() string { return "one of " + RegionNames() + " or " + RegionAuto }

// V2Host is the host of Postback API v2 in a region.
func V2Host(region string) string {
	return region + ".records.in.treasuredata.com"
}

// RegionOf finds the region of the legacy host in a request's Host, which may
// carry a port, upper case and the root's trailing dot (RFC 9110 section 4.2.3,
// RFC 3986 section 3.2.2).
func RegionOf(host string) (region string, ok bool) {
	if region, ok = regionOfLegacyHost[host]; ok {
		return region, true
	}
	name, port, _ := strings.Cut(host, ":")
	if strings.Trim(port, "0123456789") != "" {
		return "", false
	}
	region, ok = regionOfLegacyHost[strings.ToLower(strings.TrimSuffix(name, "."))]
	return region, ok
}
