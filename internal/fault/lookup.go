package fault

import "slices"

// All returns every fault, sorted by code. The slice belongs to the caller.
func All() []Fault {
	return []Fault{
		MissingEndpoint, InvalidEndpoint, UnknownDomain, InvalidTarget, ProtectedHeader, TooManyFields,
		MethodNotAllowed, ReservedPath, ExpectationFailed, BadBody, BadFraming, HeaderTooLarge, RequestTimeout,
		RateLimited, UpgradeRequired, TargetTooLong, MalformedRequest, BodyTooLarge, AddressDenied, AmbiguousField,
		EndpointBusy,
		MissingAuthorization, InvalidAuthorization, UnsupportedAuthType, InvalidToken, ExpiredToken, UnknownTenant,
		EndpointNotPermitted, AuthUnavailable, TooManyFailures,
		NoUpstreams, Overloaded,
		UpstreamUnreachable, ServiceUnreachable, UpstreamBroke, UpstreamTimeout, InvalidResponse, UnexpectedUpgrade,
		Draining, Internal, AtLimit, TooMuchUnread,
		TooManySessions, TooManyRegistrations, UnsupportedVersion,
	}
}

// ByCode returns the fault with the code, which is compared as it is: PIKO-E and four digits.
func ByCode(code string) (Fault, bool) {
	all := All()
	i := slices.IndexFunc(all, func(f Fault) bool { return f.Code == code })
	if i < 0 {
		return Fault{}, false
	}
	return all[i], true
}
