// Package piko offers services through a Piko cluster and reaches them.
//
// A process that offers a service is an agent. It connects out to the nodes of a cluster (pikod), so it needs no open
// port and no public address. What it offers has a name, the endpoint. Clients of the cluster name the endpoint, and the
// cluster brings their connections to one of the agents that listen on it.
//
// # Offering a service
//
// [Client.Listen] returns a [net.Listener], so anything that serves from one can be offered:
//
//	var client piko.Client
//	ln, err := client.Listen(ctx, "my-endpoint")
//	if err != nil {
//		return err
//	}
//	return http.Serve(ln, handler)
//
// When Listen returns, the endpoint is routable: a request sent to any node of the cluster reaches this process. From
// then on the listener looks after itself. A node that goes away is replaced, for ever, with growing and jittered pauses;
// a node that is about to stop is left only after its replacement routes the endpoint. Accept returns an error only
// after Close.
//
// [Client.ListenAndForward] offers a service that listens on a local address, with nothing else to write.
//
// One Client shares its sessions among all its listeners. It holds [Client.Connections] sessions to as many distinct
// nodes, so that the loss of one node is not the loss of the endpoint.
//
// # Reaching a service
//
// [Client.Dial] opens one byte stream to an endpoint. What it returns can close its two directions separately, like a
// TCP connection. HTTP services need no Dial: any HTTP client that names the endpoint in the Host (my-endpoint.example.com)
// or in the header x-piko-endpoint reaches them through the proxy listener of any node.
//
// # Authentication
//
// A cluster may ask for a bearer token. [Client.Token] gives a fixed one. [Client.TokenSource] is asked at each new
// connection, and again before a JSON Web Token expires: the new token is handed to the nodes on the sessions that are open,
// so that renewing costs no connection. [TokenFile] is a TokenSource that reads a file. [Client.TLSConfig] may hold a
// client certificate.
//
// # Errors
//
// A node that answers, but with no, gives a [*StatusError]; a node that will not have one endpoint a [*RefusedError].
// [ErrUnauthorized] and [ErrNoUpstream] can be told apart with [errors.Is]. After Close, everything returns
// [net.ErrClosed]. A Listen whose context ends before any node could be reached returns an error that wraps both the
// context's error and the last reason.
//
// # Ending
//
// [Client.Shutdown] tells the nodes to send nothing new, lets what runs finish, and returns as soon as nothing runs.
// [Client.Close] cuts what runs.
//
// # Compatibility
//
// The exported names of this package follow semantic versioning together with the module. A field or method may be added
// in a minor version, so composite literals should name their fields; the zero value of a new field keeps the old
// behaviour. Error texts and log messages are for people and may change at any time. A client speaks to nodes of the same
// major version, older or newer.
package piko
