package postback

import "net/http"

// This file tells calls with several events from others.

// IsKeen reports whether the call has several events.
func (c *Call) IsKeen() bool { return c.Kind == K || c.Kind == Mobile }

// isKeenPath reports whether a path is for calls with several events.
func isKeenPath(surface Surface, to Destination, refused *Refusal) bool {
	return surface == SurfaceMobile || surface == SurfaceJS && refused == nil && to == Destination{}
}

// keenKind tells what kind such a call is.
func keenKind(surface Surface, method string) Kind {
	switch {
	case method != http.MethodPost:
		return Other
	case surface == SurfaceJS:
		return K
	default:
		return Mobile
	}
}

// IsMarkedKeen reports whether headers say that a body has several events.
func IsMarkedKeen(header http.Header) bool {
	marks := header["X-Td-Data-Type"]
	return len(marks) > 0 && marks[0] == "k"
}

// Count is how many events there are, and how many of them have a fault.
func (k *Keen) Count() (events, faults int) {
	for i := range k.Collections {
		events += len(k.Collections[i].Events)
		for n := range k.Collections[i].Events {
			if k.Collections[i].Events[n].Fault != 0 {
				faults++
			}
		}
	}
	return events, faults
}

// Destination is where the events belong: as much of it as they have in common.
func (k *Keen) Destination() Destination {
	to := k.Collections[0].Destination
	for i := range k.Collections {
		next := k.Collections[i].Destination
		if next.Database != to.Database {
			return Destination{}
		}
		if next.Table != to.Table {
			to.Table = ""
		}
	}
	return to
}

// FirstFault is the first fault of an event that does not come from v2, and where the
// event belongs; 0 if there is none.
func (k *Keen) FirstFault() (KeenFault, Destination) {
	for i := range k.Collections {
		for n := range k.Collections[i].Events {
			if fault := k.Collections[i].Events[n].Fault; fault != 0 && fault != KeenRefused {
				return fault, k.Collections[i].Destination
			}
		}
	}
	return 0, Destination{}
}
