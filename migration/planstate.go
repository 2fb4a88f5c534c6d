package migration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
)

// This file writes a plan for its file, and reads it: a line with a version and the
// CRC-32 of what follows, and JSON, so that an operator can look into the copy.

const (
	stateName    = "td-postback plan "
	stateVersion = "1"

	// maxState is the most bytes of a plan: many times what the bounds of change.go
	// allow.
	maxState = 64 << 20
)

var errState = errors.New("the plan in it is damaged")

// encode writes a plan.
func (s *planState) encode() ([]byte, error) {
	body, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	body = append(body, '\n')
	return append(stateLine(body), body...), nil
}

func stateLine(body []byte) []byte {
	return fmt.Appendf(nil, "%s%s %08x\n", stateName, stateVersion, crc32.ChecksumIEEE(body))
}

// decodeState reads what encode wrote.
func decodeState(text []byte) (*planState, error) {
	line, body, _ := bytes.Cut(text, []byte("\n"))
	rest, ok := bytes.CutPrefix(line, []byte(stateName))
	if version, _, _ := bytes.Cut(rest, []byte(" ")); ok && string(version) != stateVersion {
		return nil, fmt.Errorf("%w, or of another version of the gateway", errState)
	}
	if len(text) > maxState || string(line)+"\n" != string(stateLine(body)) {
		return nil, errState
	}
	s := new(planState)
	in := json.NewDecoder(bytes.NewReader(body))
	in.DisallowUnknownFields()
	if err := in.Decode(s); err != nil {
		return nil, fmt.Errorf("%w: %w", errState, err)
	}
	if !s.isWhole() || in.More() {
		return nil, errState
	}
	return s, nil
}

// isWhole reports whether a plan can have been made by changes.
func (s *planState) isWhole() bool {
	if len(s.Rules) == 0 || len(s.Rules) > MaxRules || s.Rules[0].Rule != DefaultRule {
		return false
	}
	for i, r := range s.Rules {
		if !isRule(r.Rule) || r.Share > AllToV2 || i > 0 && compareRules(s.Rules[i-1].Rule, r.Rule) >= 0 {
			return false
		}
	}
	changes := len(s.History)
	if changes == 0 && (s.Revision > 0 || s.Hold != nil || !s.hasOwn()) || changes > MaxHistory || uint64(changes) > s.Revision || ruleChanges(s.History) > maxRuleChanges {
		return false
	}
	for i := range s.History {
		if s.History[i].Revision != s.Revision-uint64(changes-1-i) || !s.History[i].isWhole() { //nolint:gosec // G115: it is positive
			return false
		}
	}
	return s.Hold.isWhole(s.Revision) && s.Local.isWhole(s.Revision) && s.Wanted.isWhole(s.Revision)
}

func (h *Hold) isWhole(revision uint64) bool {
	return h == nil || h.Revision <= revision && isText(h.Who, maxWho) && isText(h.Note, maxNoteKept)
}

func (c *Change) isWhole() bool {
	known := []Action{ActionShare, ActionUnset, ActionUndo, ActionRollback, ActionResume}
	if !slices.Contains(known, c.Action) || !isText(c.Who, maxWho) || !isText(c.Note, maxNoteKept) {
		return false
	}
	return !slices.ContainsFunc(c.Rules, func(r RuleChange) bool {
		return !isRule(r.Rule) || r.From == nil && r.To == nil || r.Rule == DefaultRule && (r.From == nil || r.To == nil)
	})
}

func isRule(r Rule) bool {
	_, err := ParseRule(r.Target, r.Account)
	return err == nil
}

func isText(text string, limit int) bool { return clean(text, limit) == text }
