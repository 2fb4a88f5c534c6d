package postback

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"slices"
	"time"
)

// AppendKept appends a request to dst in the form in which it is kept: as it
// goes over the connection later. A record that does not say its time gets the
// arrival, unless that would make it too large, or something describes its
// bytes, or the clock is wrong.
func AppendKept(dst []byte, q *Request, arrival time.Time) ([]byte, RecordTime) {
	later := *q
	later.Forwarded.EarlyData = false // by the time of delivery, the handshake is long complete
	body := q.Body
	if len(q.More) > 0 {
		body = slices.Concat(append([][]byte{q.Body}, q.More...)...)
	}
	later.Body, later.More = body, nil
	timed := TimeNoObject
	if !q.mustStay() && len(body)+maxTimeMember <= MaxBody {
		var room [maxTimeMember]byte
		change := timeChangeOf(room[:0], body, arrival, q.FromQuery && !q.ownTimes)
		if timed = change.timed; timed == TimeAdded {
			later.Body, later.More = body[:change.from], [][]byte{change.text, body[change.to:]}
		}
	}
	dst = later.AppendHead(dst)
	dst = append(dst, later.Body...)
	for _, part := range later.More {
		dst = append(dst, part...)
	}
	return dst, timed
}

// SurelyRefused reports whether v2 would refuse the request for its body: one that
// is not one JSON object. A compressed one is not judged.
func (q *Request) SurelyRefused() bool {
	if q.FromQuery || q.Compressed() {
		return false
	}
	body := q.Body
	if len(q.More) > 0 {
		body = slices.Concat(append([][]byte{q.Body}, q.More...)...)
	}
	return !startsObject(body) || !validJSON(body)
}

// KeptPayer is the Payer of a request that AppendKept has written. It reads no more
// than the head, and is empty if there is no key in it.
func KeptPayer(data []byte) string { return payerOf(findKeptKey(data)) }

// KeptAccount is the same for Account.
func KeptAccount(data []byte) string {
	kept := Credentials{WriteKey: findKeptKey(data)}
	return kept.Account()
}

// findKeptKey finds the key that v2 uses of a request that AppendKept has written.
func findKeptKey(data []byte) string {
	var key keptKey
	for {
		line, rest, ok := cutLine(data)
		if !ok || len(line) == 0 { // the end of the head
			return string(key.text)
		}
		key.read(line)
		data = rest
	}
}

// keptKey is the key that v2 uses of a head, as far as that has been read.
type keptKey struct {
	text []byte
	td1  bool // it stands in Authorization, which v2 prefers
}

func (k *keptKey) read(line []byte) {
	if value, ok := bytes.CutPrefix(line, []byte("Authorization: TD1 ")); ok && !k.td1 {
		k.text, k.td1 = value, true
	} else if value, ok := bytes.CutPrefix(line, []byte(WriteKeyHeader+": ")); ok && !k.td1 {
		k.text = value
	}
}

// cutLine cuts the first line of a head. It returns false if that does not end.
func cutLine(head []byte) (line, rest []byte, ok bool) {
	end := bytes.IndexByte(head, '\n')
	if end < 1 || head[end-1] != '\r' {
		return head, nil, false
	}
	return head[:end-1], head[end+1:], true
}

// Kept is a request that was kept, read back.
type Kept struct {
	Path, Query string
	Header      http.Header // without the keys
	Credentials Credentials // without their source
	Body        []byte
}

// ReadKept reads a request that AppendKept has written. It fails if the request
// is damaged; what could be read of it is returned all the same.
func ReadKept(data []byte) (Kept, error) {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(data)))
	if err != nil {
		return Kept{}, err
	}
	k := Kept{
		Path: r.URL.Path, Query: r.URL.RawQuery, Header: r.Header,
		Credentials: Credentials{WriteKey: r.Header.Get(WriteKeyHeader), Authorization: r.Header.Get("Authorization")},
	}
	r.Header.Del(WriteKeyHeader)
	r.Header.Del("Authorization")
	k.Body, err = io.ReadAll(r.Body)
	return k, err
}
