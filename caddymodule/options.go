package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// This file says what is wrong with an option, in a Caddyfile and in JSON: its
// name, what is allowed, and what was probably meant.

// blocks has the options of each block that has some.
var blocks = map[string][]string{directive: optionsOf(Handler{}), "spool": optionsOf(Spool{}), "keys": optionsOf(Keys{}), "report": optionsOf(Report{}), "migrate": optionsOf(Migrate{}), consoleDirective: optionsOf(Console{}), matcherName: optionsOf(MatchCall{})}

// optionsOf lists the options that a block's type has.
func optionsOf(block any) (names []string) {
	for _, field := range reflect.VisibleFields(reflect.TypeOf(block)) {
		if name := optionName(field); name != "" {
			names = append(names, name)
		}
	}
	return names
}

func optionName(field reflect.StructField) string {
	name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
	return name
}

// noOption says that a block has no such option, and where it belongs or which
// one was probably meant.
func noOption(option, block string) string {
	problem := withoutSecret(option) + " is no option of " + block
	if option == "nats" && block == "spool" { // in a Caddyfile
		return problem + ": its place is behind it, spool nats <url...>"
	}
	if meant := nearest(option, blocks[block]); meant != "" {
		return problem + didYouMean(meant)
	}
	var owners []string
	for _, other := range slices.Sorted(maps.Keys(blocks)) {
		if slices.Contains(blocks[other], option) {
			owners = append(owners, other)
		}
	}
	if len(owners) > 0 {
		return problem + ": " + option + " is an option of " + strings.Join(owners, " and of ")
	}
	for _, other := range slices.Sorted(maps.Keys(blocks)) {
		if meant := nearest(option, blocks[other]); meant != "" {
			return problem + didYouMean(meant+", an option of "+other)
		}
	}
	return problem
}

// UnmarshalJSON reads the options. An error names the option.
func (h *Handler) UnmarshalJSON(data []byte) error { return decodeOptions(data, h, directive) }

// UnmarshalJSON reads the options. An error names the option.
func (s *Spool) UnmarshalJSON(data []byte) error {
	return decodeOptions(data, s, "spool")
}

// UnmarshalJSON reads the options. An error names the option.
func (k *Keys) UnmarshalJSON(data []byte) error { return decodeOptions(data, k, "keys") }

// UnmarshalJSON reads the options. An error names the option.
func (r *Report) UnmarshalJSON(data []byte) error { return decodeOptions(data, r, "report") }

// UnmarshalJSON reads the options. An error names the option.
func (m *Migrate) UnmarshalJSON(data []byte) error { return decodeOptions(data, m, "migrate") }

// UnmarshalJSON reads the options. An error names the option.
func (c *Console) UnmarshalJSON(data []byte) error { return decodeOptions(data, c, consoleDirective) }

// UnmarshalJSON reads the options. An error names the option.
func (m *MatchCall) UnmarshalJSON(data []byte) error { return decodeOptions(data, m, matcherName) }

// decodeOptions reads a JSON object into a block's type, option by option.
func decodeOptions(data []byte, block any, name string) error {
	var options map[string]json.RawMessage
	if err := json.Unmarshal(data, &options); err != nil {
		return fmt.Errorf("%s must be an object with options", name)
	}
	fields := map[string]any{}
	value := reflect.ValueOf(block).Elem()
	for _, field := range reflect.VisibleFields(value.Type()) {
		if option := optionName(field); option != "" {
			fields[option] = value.FieldByIndex(field.Index).Addr().Interface()
		}
	}
	for _, option := range slices.Sorted(maps.Keys(options)) {
		into, ok := fields[option]
		if !ok {
			return errors.New(noOption(option, name))
		}
		if err := json.Unmarshal(options[option], into); err != nil {
			if name != directive {
				option = name + " " + option
			}
			return optionError(option, into, err)
		}
	}
	return nil
}

// optionError says which kind of value an option takes.
func optionError(option string, into any, err error) error {
	if _, ok := into.(*caddy.Duration); ok {
		return fmt.Errorf("%s: must be a duration such as 5s or 6d, or a number of nanoseconds: %w", option, err)
	}
	wrong, ok := errors.AsType[*json.UnmarshalTypeError](err)
	if !ok {
		return err // of a block within, which names its option
	}
	kind := wrong.Type.Kind()
	if reflect.TypeOf(into).Elem().Kind() == reflect.Slice {
		kind = reflect.Slice // and not what is in it
	}
	allowed := map[reflect.Kind]string{
		reflect.String: "a string", reflect.Slice: "an array of strings", reflect.Bool: "true or false", reflect.Int: "a whole number",
		reflect.Int64: "a whole number of bytes, such as 524288",
	}[kind]
	return fmt.Errorf("%s: must be %s, not %s", option, allowed, valueText(wrong.Value))
}

// valueText says which value was found: a kind, or the number itself.
func valueText(found string) string {
	if number, ok := strings.CutPrefix(found, "number "); ok {
		return number
	}
	if found == "array" || found == "object" {
		return "an " + found
	}
	return "a " + found
}

// durationText writes a duration as an operator does: 8d, and not 192h0m0s.
func durationText(d time.Duration) string {
	const day = 24 * time.Hour
	if d > 0 && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// readFile reads a file that an option names. It must be one: a pipe would hold up
// the start for ever, and a device may have no end.
func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is no regular file")
	}
	return os.ReadFile(name) //nolint:gosec // G304: the operator names it
}
