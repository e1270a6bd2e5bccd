// Package consul keeps the directory of the cluster in Consul: which nodes there are, and what each of them holds.
//
// Each node has one Consul session, on a catalog node of its own that no agent owns, so that neither the end of an agent
// nor that of a server ends the session. Everything that the node writes is locked by it and vanishes with it:
//
//	B = <prefix>/<cluster>/v1
//	B/m/<node>                  who the node is                                      (member)
//	B/n/<node>/head             sequence number and the last changes; the one hot key (head)
//	B/n/<node>/b/<gen>/<xxxx>   key -> weight, for the keys whose hash ends so        (bucket)
//
// Keys of the router stand in values only, never in names: names are cleaned and limited by Consul. Buckets keep the
// number of locked keys in the hundreds, since Consul deletes the keys of a dead session in one step that holds up every
// other write of the datacenter.
//
//	Local --changes--> writer --transactions--> Consul --blocking reads--> one watch for each node --> Table
//	                  (budget, at most 62 buckets and 350 KB each)          (head; a list after a gap)
//
// # Sequence numbers
//
// A head says that the buckets hold at least what the node held at sequence number s of its [cluster.Local], and carries
// the last changes as ranges f to s. Weights are values and not steps: a bucket that was written a moment before its head
// holds values that the next range repeats, so a reader that lists in between is never wrong for longer than that head
// takes to arrive. Numbers count within one life of the process, the incarnation, and go on when the Consul session is
// lost and made anew: what others have of the node stays good, whether it came by this way or from the node itself, and
// they need only what changed meanwhile. The session is no part of that identity. It is told by the lock on the key.
//
// # Absence
//
// Nothing is dropped because it is not there: not for an empty answer, a 404, a lower index or an unlocked record. That a
// member is gone is confirmed by a consistent read, and then it is an orphan: it keeps its routes as long as it answers on
// its own address, up to 15 minutes, and returns without a reload when its record does. So neither the loss of a
// session nor a deleted tree nor a Consul that is gone costs a request.
//
// # Access control
//
// With Consul's access control on, these four rules are all that a node needs:
//
//	key_prefix     "<prefix>/<cluster>/" { policy = "write" }
//	session_prefix "pikod-"              { policy = "write" }
//	node_prefix    "pikod-"              { policy = "write" }
//	service        "pikod"               { policy = "write" }
//
// # Goroutines
//
// [Directory.Run] owns them all: one for the session, which also writes; one that renews; one that watches the members;
// one for each other node, watching its head or probing it as an orphan; one watches our own head, to measure how long
// a write takes to arrive and to repair what an operator edited; one sweeps up after dead nodes.
package consul
