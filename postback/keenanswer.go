package postback

// This file answers requests with several events. The SDKs delete an event from their
// store when the answer says that it was taken, or that it has one of three errors.
// After an answer below 300 that leaves any other event, old ones send it again at
// once, for ever.

// KeenFault says why an event can never be taken. The zero value is none.
type KeenFault uint8

// The faults.
const (
	KeenBadName  KeenFault = 1 + iota // of the collection
	KeenNoObject                      // it is not an object
	KeenTooLarge                      // it is too large, also for Postback
	KeenRefused                       // v2 refuses it
)

// keenFaults has the errors of the answers. The third that makes clients delete an
// event, InvalidPropertyNameError, is for none: v2 has no published rule for the names
// of columns.
var keenFaults = [...]struct{ name, description string }{
	KeenBadName:  {"InvalidCollectionNameError", "the name must be a database and a table with a dot between them, both of letters, digits and _"},
	KeenNoObject: {"InvalidPropertyValueError", "the event must be a JSON object"},
	KeenTooLarge: {"InvalidPropertyValueError", "the event is larger than Treasure Data takes"},
	KeenRefused:  {"InvalidPropertyValueError", "Treasure Data has refused the event"},
}

// String says what must be otherwise, for logs.
func (f KeenFault) String() string { return keenFaults[f].description }

// AppendAnswer appends the answer to a request of which each event is taken, or kept,
// or has a fault.
func (k *Keen) AppendAnswer(dst []byte) []byte {
	dst = append(dst, '{')
	for i := range k.Collections {
		c := &k.Collections[i]
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(append(append(dst, '"'), c.name...), `":[`...)
		for n := range c.Events {
			if n > 0 {
				dst = append(dst, ',')
			}
			dst = c.Events[n].Fault.appendResult(dst)
		}
		dst = append(dst, ']')
	}
	return append(dst, '}')
}

// appendResult appends the result of one event.
func (f KeenFault) appendResult(dst []byte) []byte {
	if f == 0 {
		return append(dst, `{"success":true}`...)
	}
	dst = append(dst, `{"success":false,"error":{"name":"`...)
	dst = append(dst, keenFaults[f].name...)
	dst = append(dst, `","description":"`...)
	dst = append(dst, keenFaults[f].description...)
	return append(dst, `"}}`...)
}
