package caddymodule

import (
	"cmp"
	"strings"

	"github.com/td-postback/gateway/postback"
)

// nearest returns the allowed word that somebody probably meant with another one:
// the one with the fewest letters to change, or the only one that it begins. It
// is empty if none is near, or several are equally near.
func nearest(word string, allowed []string) string {
	word = strings.ToLower(strings.TrimSpace(word))
	best, least, begun := "", len(word)/3+1, []string{}
	for _, candidate := range allowed {
		switch steps := editSteps(word, candidate); {
		case steps < least:
			best, least = candidate, steps
		case steps == least && steps < len(word)/3+1:
			best = ""
		}
		if word != "" && strings.HasPrefix(candidate, word) {
			begun = append(begun, candidate)
		}
	}
	if best == "" && len(begun) == 1 {
		return begun[0]
	}
	return best
}

// maxWord is the longest word that is compared: no option is longer.
const maxWord = 64

// editSteps counts the letters to add, drop, change or swap with their neighbour
// to make b of a (the optimal string alignment distance).
func editSteps(a, b string) int {
	if len(a) > maxWord || len(b) > maxWord {
		return maxWord
	}
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			change := last[j]
			if a[i] != b[j] {
				change++
			}
			row[j+1] = min(change, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}

// cities are where the regions are.
var cities = map[string]string{
	"tokyo": "ap01", "japan": "ap01", "seoul": "ap02", "korea": "ap02", "virginia": "us01", "frankfurt": "eu01", "germany": "eu01",
}

// clouds are the names that the cloud below has for the same places. They differ
// by a digit from names of others, so they are not guessed at.
var clouds = map[string]string{"us-east-1": "us01", "eu-central-1": "eu01", "ap-northeast-1": "ap01", "ap-northeast-2": "ap02"}

// nearestRegion returns the region that somebody probably meant: by a host of
// either API, by a city, by the cloud's name, or by a name that is nearly right.
func nearestRegion(value string) string {
	value = strings.ToLower(value)
	if _, rest, ok := strings.Cut(value, "://"); ok {
		value = rest
	}
	value, _, _ = strings.Cut(value, "/")
	if region := clouds[value]; region != "" {
		return region
	}
	names := []string{postback.RegionAuto}
	for region, host := range postback.LegacyHosts {
		if value == host || value == postback.V2Host(region) {
			return region
		}
		names = append(names, region)
	}
	for city := range cities {
		names = append(names, city)
	}
	name := nearest(value, names)
	return cmp.Or(cities[name], name)
}

// didYouMean is the end of an error message.
func didYouMean(word string) string {
	if word == "" {
		return ""
	}
	return " (did you mean " + word + "?)"
}
