package spool

// Event is something that an operator should know of a Log.
type Event struct {
	Kind    EventKind
	Text    string // what happened, if Kind does not say it well enough
	Queue   string // that it concerns, if it is about one
	File    string // the same
	Records int    // how many it concerns, for NotSealed, Damaged, SetAside, Unnoted and Stranded
	Err     error  // why, if something failed
}

// EventKind is what an Event is about.
type EventKind string

// The kinds of events.
const (
	NearlyFull  EventKind = "the spool is nearly full"               // more than 80 %; again after it has been below 70 %
	Failed      EventKind = "the spool's disk refuses records"       // until Recovered; a disk says so once, a cluster for each of its reasons
	Recovered   EventKind = "the spool's disk takes records again"   // after Failed
	Undeletable EventKind = "a file of the spool cannot be deleted"  // nothing in it is needed
	Unreadable  EventKind = "a file of the spool cannot be read now" // it is tried again
	Foreign     EventKind = "a directory in the spool is none of it" // it is left alone
	NotSealed   EventKind = "records in the spool are not encrypted" // with a key; they are dead letters now
	Damaged     EventKind = "a record in the spool is damaged"       // it is a dead letter now
	SetAside    EventKind = "a file of the spool is damaged"         // it was renamed; so many of its records are delivered, maybe again
	SmallDisk   EventKind = "the spool's disk has less room than it may use"
	Unnoted     EventKind = "that records were delivered could not be noted"                 // so many come again
	Disturbed   EventKind = "the spool's cluster is disturbed"                               // no record is refused or lost
	Stranded    EventKind = "a queue of the spool is for a host that is in no configuration" // it holds so many records and dead letters
	Unnamed     EventKind = "a queue of the spool has no name now"                           // its records have no Namespace; it is tried again
)

// String says what happened.
func (e Event) String() string {
	if e.Text != "" {
		return e.Text
	}
	return string(e.Kind)
}
