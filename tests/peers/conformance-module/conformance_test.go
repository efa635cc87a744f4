// The Gateway API's conformance suite as it is published, as a program: what it looks at is said by its flags and by the
// GatewayClass. tests/peers/conformance runs it.
package conformance

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

func TestConformance(t *testing.T) {
	conformance.RunConformance(t)
}
