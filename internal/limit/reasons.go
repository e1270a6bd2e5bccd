package limit

import "github.com/pikoproxy/piko/internal/fault"

// ReasonOf returns why a request is turned away that is answered with the fault of a code; "" if the request is not to
// blame, and nothing of what it met is.
func ReasonOf(code string) Reason { return reasons[code] }

var reasons = map[string]Reason{
	fault.MissingEndpoint.Code:      BadRequest,
	fault.InvalidEndpoint.Code:      BadRequest,
	fault.InvalidTarget.Code:        BadRequest,
	fault.ExpectationFailed.Code:    BadRequest,
	fault.BadBody.Code:              BadRequest,
	fault.MalformedRequest.Code:     BadRequest,
	fault.UpgradeRequired.Code:      BadRequest,
	fault.UnsupportedVersion.Code:   BadRequest,
	fault.UnknownDomain.Code:        UnknownDomain,
	fault.ProtectedHeader.Code:      ProtectedHeader,
	fault.TooManyFields.Code:        ManyFields,
	fault.MethodNotAllowed.Code:     Method,
	fault.ReservedPath.Code:         ReservedPath,
	fault.BadFraming.Code:           BadFraming,
	fault.HeaderTooLarge.Code:       LongHeader,
	fault.TargetTooLong.Code:        LongTarget,
	fault.BodyTooLarge.Code:         LongBody,
	fault.RequestTimeout.Code:       SlowHeader,
	fault.RateLimited.Code:          AddressRate,
	fault.EndpointBusy.Code:         EndpointRate,
	fault.AddressDenied.Code:        AddressDenied,
	fault.AmbiguousField.Code:       Underscores,
	fault.MissingAuthorization.Code: Unauthenticated,
	fault.InvalidAuthorization.Code: Unauthenticated,
	fault.UnsupportedAuthType.Code:  Unauthenticated,
	fault.InvalidToken.Code:         Unauthenticated,
	fault.ExpiredToken.Code:         Unauthenticated,
	fault.UnknownTenant.Code:        Unauthenticated,
	fault.EndpointNotPermitted.Code: NotPermitted,
	fault.TooManyFailures.Code:      AuthRate,
	fault.Overloaded.Code:           Overload,
	fault.AtLimit.Code:              OutOfMemory,
	fault.TooMuchUnread.Code:        Unread,
	fault.UpstreamTimeout.Code:      SlowService,
	fault.InvalidResponse.Code:      BadResponse,
	fault.UnexpectedUpgrade.Code:    BadResponse,
	fault.Draining.Code:             Stopping,
	fault.TooManySessions.Code:      Sessions,
	fault.TooManyRegistrations.Code: RegistrationRate,
}
