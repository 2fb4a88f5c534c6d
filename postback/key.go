package postback

import (
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
)

const (
	// WriteKeyParam is the URL parameter that carries the key in the legacy
	// contract. v2 does not read it.
	WriteKeyParam = "td_write_key"

	// APIKeyParam is the same for JavaScript SDKs.
	APIKeyParam = "api_key"

	// WriteKeyHeader carries the key in both contracts, spelled as published.
	WriteKeyHeader = "X-TD-Write-Key"

	// canonicalWriteKeyHeader is WriteKeyHeader as net/http's maps spell it.
	canonicalWriteKeyHeader = "X-Td-Write-Key"

	// maxWriteKey is the longest key that is forwarded, in bytes. Real keys
	// have about 45; a longer value is no key but a mistake worth an answer.
	maxWriteKey = 1024
)

// urlKey is what the td_write_key parameters of a query say.
type urlKey struct {
	key     string // the first value that is not empty, decoded, cut and trimmed
	invalid bool   // that value has a bad percent-escape, so there is no key to read
}

// none reports whether no key has been read so far.
func (k *urlKey) none() bool { return k.key == "" && !k.invalid }

// cutWriteKey takes every td_write_key parameter out of a raw query. The other
// parameters keep their order and their bytes; without any, rest is empty.
// Only `&` separates parameters, as in the URL standard: a `;` is part of a
// value.
func cutWriteKey(query string) (rest string, key urlKey) {
	var (
		lo, hi = 0, -1         // what was kept is query[lo:hi], as long as it is in one piece
		joined strings.Builder // what was kept, once it is in several
		any    bool            // at least one parameter was kept
	)
	for start := 0; start <= len(query); {
		end := len(query)
		if i := strings.IndexByte(query[start:], '&'); i >= 0 {
			end = start + i
		}
		param := query[start:end]
		if value, ok := writeKeyValue(param); ok {
			if key.none() {
				key = decodeKey(value)
			}
		} else {
			any = any || param != ""
			switch {
			case joined.Len() > 0:
				joined.WriteByte('&')
				joined.WriteString(param)
			case hi < 0:
				lo, hi = start, end
			case start == hi+1:
				hi = end
			default:
				joined.Grow(len(query) - lo)
				joined.WriteString(query[lo:hi])
				joined.WriteByte('&')
				joined.WriteString(param)
			}
		}
		start = end + 1
	}
	switch {
	case !any:
		return "", key
	case joined.Len() > 0:
		return joined.String(), key
	default:
		return query[lo:hi], key
	}
}

// writeKeyValue returns the raw value of a td_write_key parameter. The name
// may be percent-encoded: a decoder at v2 or on the way would see the key.
func writeKeyValue(param string) (value string, ok bool) {
	name, value, _ := strings.Cut(param, "=")
	if name == WriteKeyParam {
		return value, true
	}
	if len(name) <= len(WriteKeyParam) || strings.IndexByte(name, '%') < 0 {
		return "", false
	}
	decoded, err := url.QueryUnescape(name)
	return value, err == nil && decoded == WriteKeyParam
}

func decodeKey(value string) urlKey {
	decoded, err := url.QueryUnescape(cutFragment(value))
	if err != nil {
		return urlKey{invalid: true}
	}
	return urlKey{key: trimKey(cutFragment(decoded))}
}

// cutFragment cuts what was meant as a URL's fragment: no key has a `#`.
func cutFragment(value string) string {
	before, _, _ := strings.Cut(value, "#")
	return before
}

func trimKey(key string) string {
	return textproto.TrimString(key)
}

// KeySource is where the key that v2 uses was found.
type KeySource uint8

const (
	KeyNone KeySource = iota
	KeyParam
	KeyHeader
	KeyTD1 // Authorization: TD1
)

// KeySourceNames has the sources' names in metrics and logs.
var KeySourceNames = [...]string{"none", "param", "header", "td1"}

// String is the source's name in metrics and logs.
func (s KeySource) String() string { return KeySourceNames[s] }

// Credentials are the headers by which a request authenticates at v2. An empty
// one is not sent.
type Credentials struct {
	WriteKey      string // X-TD-Write-Key
	Authorization string // Authorization
	Source        KeySource
}

// Key is the key that v2 uses: it prefers Authorization.
func (c *Credentials) Key() string {
	if c.Authorization != "" {
		return strings.TrimPrefix(c.Authorization, "TD1 ")
	}
	return c.WriteKey
}

// findKey decides which keys v2 gets: of the URL's, those in X-TD-Write-Key and
// those in Authorization. In the legacy contract the header
// wins over the URL and Authorization is ignored; in v2 Authorization wins. So
// Authorization passes only where a caller speaks v2 already: TD1, and no key
// in the URL that a legacy endpoint would have used. Only the key that v2 would
// use is checked.
func findKey(param urlKey, headers, authorizations []string) (cred Credentials, refused *Refusal) {
	for _, value := range headers {
		if cred.WriteKey = trimKey(cutFragment(value)); cred.WriteKey != "" {
			cred.Source = KeyHeader
			break
		}
	}
	switch hasParam := param.key != "" || param.invalid; {
	case !hasParam:
		if cred.Authorization = td1(authorizations); cred.Authorization != "" {
			cred.Source = KeyTD1
		}
	case cred.WriteKey == "":
		cred.WriteKey, cred.Source = param.key, KeyParam
	}
	if cred.Source == KeyNone {
		return cred, MissingKey
	}
	problem := keyProblem(cred.Key())
	if cred.Source == KeyParam && param.invalid {
		problem = "the write key in the URL has a bad percent-escape; percent-encode it once"
	}
	if problem != "" {
		return Credentials{Source: cred.Source}, invalidKey(problem)
	}
	if cred.Source == KeyTD1 && keyProblem(cred.WriteKey) != "" {
		cred.WriteKey = "" // v2 would not use it, and a header may not hold it
	}
	return cred, nil
}

// findJSKey is findKey for a call of a JavaScript SDK's, which may have the key in
// api_key. What a legacy endpoint would have used comes first there, in all cases.
func findJSKey(q *jsQuery, headers, authorizations []string) (Credentials, *Refusal) {
	param := q.writeKey
	if param.none() {
		param = q.apiKey
	}
	cred, refused := findKey(param, headers, nil)
	if refused == MissingKey {
		return findKey(param, nil, authorizations)
	}
	return cred, refused
}

// td1 returns the first Authorization of the scheme TD1 that has a key, the
// scheme spelled as published (RFC 9110 section 11.1: it compares without
// case). Any other Authorization is not for v2.
func td1(authorizations []string) string {
	for _, value := range authorizations {
		value = trimKey(cutFragment(value))
		if len(value) < 4 || !strings.EqualFold(value[:3], "TD1") || (value[3] != ' ' && value[3] != '\t') {
			continue
		}
		if value[:4] == "TD1 " && value[4] > ' ' {
			return value
		}
		return "TD1 " + trimKey(value[4:])
	}
	return ""
}

// keyProblem says what is wrong with a key that must not become a header, or
// that is none for sure. For a good key it says nothing. The text never holds
// the key.
func keyProblem(key string) string {
	if len(key) > maxWriteKey {
		return "the write key is longer than " + strconv.Itoa(maxWriteKey) + " bytes"
	}
	for i := 0; i < len(key); i++ {
		switch c := key[i]; {
		case c <= ' ' || c >= 0x7f:
			return "the write key has a byte that is not visible ASCII; percent-encode it once, like any URL parameter"
		case c == ',':
			return "the write key has a comma; send one key, once"
		case c == '"' || c == '\'':
			return "the write key has a quote; send it without quotes"
		}
	}
	if _, secret, ok := strings.Cut(key, "/"); ok && secret == "" {
		return "the write key has nothing behind its slash; send all of it"
	}
	return ""
}

// hasOnly reports whether all bytes of a text are of one kind.
func hasOnly(text string, kind func(byte) bool) bool {
	for i := 0; i < len(text); i++ {
		if !kind(text[i]) {
			return false
		}
	}
	return true
}

// Account is the account number of the key that v2 uses, and nothing else of
// it: `1234/…`.
func (c *Credentials) Account() string {
	key := c.Key()
	if key == "" {
		return ""
	}
	return maskKey(key)
}

// Payer is whom v2 counts a record for: the account number of the key that v2 uses,
// or the key itself if it has none.
func (c *Credentials) Payer() string { return payerOf(c.Key()) }

func payerOf(key string) string {
	if account := accountOf(key); account != "" {
		return account
	}
	return key
}

// accountOf is the account number of a key, or empty if it has none.
func accountOf(key string) string {
	account, _, ok := strings.Cut(key, "/")
	if !ok || !hasOnly(account, isDigit) {
		return ""
	}
	return account
}

// maskKey keeps a write key's account number and nothing else: `1234/…`.
func maskKey(key string) string {
	account := accountOf(key)
	if account == "" {
		return "…"
	}
	return account + "/…"
}
