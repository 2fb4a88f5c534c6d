package cluster

import (
	"strconv"
	"strings"
)

// maxToken is how long a name may be for the servers.
const maxToken = 255

func (l *Log) recordSubject(token string) string { return l.config.Name + ".records." + token }
func (l *Log) letterSubject(token string) string { return l.config.Name + ".letters." + token }

// tokenOf writes a queue's name as one token of a subject, which is good as the
// name of a consumer too: letters, digits and "-" stay, any other byte becomes
// "_" and two hex digits. "_" alone is the queue without a name.
func tokenOf(queue string) string {
	if queue == "" {
		return "_"
	}
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(queue) {
		if c := queue[i]; plain(c) {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'_', digits[c>>4], digits[c&15]})
		}
	}
	return b.String()
}

// queueOf reads what tokenOf wrote, and nothing else.
func queueOf(token string) (queue string, ok bool) {
	if token == "_" {
		return "", true
	}
	var b strings.Builder
	for rest := token; rest != ""; {
		c, width := rest[0], 1
		if c == '_' && len(rest) >= 3 {
			n, err := strconv.ParseUint(rest[1:3], 16, 8)
			if err != nil {
				return "", false
			}
			c, width = byte(n), 3
		}
		b.WriteByte(c)
		rest = rest[width:]
	}
	queue = b.String()
	return queue, tokenOf(queue) == token
}

func plain(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '-'
}
