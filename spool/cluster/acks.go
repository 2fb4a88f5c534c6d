package cluster

import (
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/td-postback/gateway/spool"
)

// acks are the acks that the servers have not confirmed. One that is on its way
// when a server dies, or begins to lead, is lost, and the record would come again
// half a minute later. So it is sent until it is confirmed.
type acks struct {
	inbox string // for what the servers say

	mu   sync.Mutex
	sent map[uint64]ack // by the record's number in the stream
}

// ack is an ack that was sent.
type ack struct {
	subject     string
	stored      time.Time // when the servers got the record: another of this number is another record
	first, last time.Time // when it was sent
}

// receive begins to hear of what the servers have confirmed.
func (a *acks) receive(conn *nats.Conn) error {
	a.inbox, a.sent = conn.NewInbox(), map[uint64]ack{}
	_, err := conn.Subscribe(a.inbox+".*", func(m *nats.Msg) {
		seq, err := strconv.ParseUint(m.Subject[strings.LastIndexByte(m.Subject, '.')+1:], 10, 64)
		if err != nil || m.Header.Get("Status") != "" { // that nobody was there to hear it
			return
		}
		a.mu.Lock()
		delete(a.sent, seq)
		a.mu.Unlock()
	})
	return err
}

// acknowledge says of a message that v2 has taken the record, and does not wait.
func (l *Log) acknowledge(msg jetstream.Msg) error {
	meta, err := msg.Metadata()
	if err != nil {
		return err
	}
	now := time.Now()
	l.acks.mu.Lock()
	l.acks.sent[meta.Sequence.Stream] = ack{msg.Reply(), meta.Timestamp, now, now}
	l.acks.mu.Unlock()
	return l.sendAck(meta.Sequence.Stream, msg.Reply())
}

func (l *Log) sendAck(seq uint64, subject string) error {
	return l.control.conn.PublishRequest(subject, l.acks.inbox+"."+strconv.FormatUint(seq, 10), []byte("+ACK"))
}

// acked reports whether a message that was given out is of a record that this
// gateway has acked.
func (l *Log) acked(meta *jetstream.MsgMetadata) bool {
	l.acks.mu.Lock()
	defer l.acks.mu.Unlock()
	sent, known := l.acks.sent[meta.Sequence.Stream]
	return known && sent.stored.Equal(meta.Timestamp)
}

// ackAgain sends what was not confirmed for some time. What never is, the servers
// do not know: it is forgotten.
func (l *Log) ackAgain(after time.Duration) {
	again, now := map[uint64]string{}, time.Now()
	l.acks.mu.Lock()
	for seq, sent := range l.acks.sent {
		switch {
		case now.Sub(sent.first) > 4*l.config.ackWait:
			delete(l.acks.sent, seq)
		case now.Sub(sent.last) >= after:
			again[seq] = sent.subject
			sent.last = now
			l.acks.sent[seq] = sent
		}
	}
	l.acks.mu.Unlock()
	for seq, subject := range again {
		if err := l.sendAck(seq, subject); err != nil {
			l.config.OnEvent(spool.Event{Kind: spool.Disturbed, Text: "NATS does not hear that a record is delivered", Err: err})
			return // it is tried again
		}
	}
}
