package config

import (
	"net/netip"
	"strings"
	"testing"
)

// An IPv4 address in the form of IPv6 must not be a way around a list of networks.
func TestCVE_2024_24790_MappedAddressesAreWhatTheyStandFor(t *testing.T) {
	p, err := LoadPikod(write(t, t.TempDir(), "p.toml", "proxy.trusted_proxies = ['10.0.0.0/8', '127.0.0.1', '::1']"))
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{
		"10.1.2.3": true, "::ffff:10.1.2.3": true, "127.0.0.1": true, "::ffff:127.0.0.1": true, "::1": true,
		"11.1.2.3": false, "::ffff:11.1.2.3": false, "::2": false, "::10.1.2.3": false, "64:ff9b::10.1.2.3": false,
	} {
		if got := p.Proxy.TrustedProxies.Contains(netip.MustParseAddr(text)); got != want {
			t.Errorf("Contains(%s) = %v, want %v", text, got, want)
		}
	}
}

// A secret that a variable should have brought, and did not, must not mean "no authentication".
func TestCVE_2024_43798_UnsetVariableDoesNotSwitchAuthenticationOff(t *testing.T) {
	for _, text := range []string{
		"upstream.listen = ':8001'\nupstream.auth.hmac_secret_key = '${PIKO_TEST_IS_NOT_SET}'",
		"upstream.listen = ':8001'\nupstream.auth.hmac_secret_key = '${PIKO_TEST_IS_NOT_SET:-}'",
		"upstream.listen = ':8001'\nupstream.auth.hmac_secret_key = ''",
	} {
		dir := t.TempDir()
		if _, err := LoadPikod(write(t, dir, "p.toml", text)); err == nil || !strings.Contains(err.Error(), "upstream.") {
			t.Errorf("%s: %v, want it refused", text, err)
		}
	}
}
