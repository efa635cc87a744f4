//! The sorts of findings. A code's number and name never change their meaning, so that programs can go by them.

use std::fmt;

use crate::model::Severity;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $severity:ident;)*) => {
        /// A sort of finding.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// How bad it is.
            pub const fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity,)* }
            }

            const fn number(self) -> u16 {
                match self { $(Self::$name => $number,)* }
            }
        }
    };
}

codes! {
    /// The reader refuses the resource.
    Refused = 1, Error;
    /// The reader takes the resource and doubts it.
    Doubted = 2, Warning;
    /// An ALLOW policy makes everything else to its workloads denied, and that breaks what is known to happen.
    DefaultDeny = 101, Warning;
    /// A rule looks at requests where the port carries bytes.
    HttpFieldsOnTcp = 102, Warning;
    /// A selector selects no workload.
    SelectsNothing = 103, Warning;
    /// A policy names an identity that no workload has.
    UnknownIdentity = 104, Warning;
    /// `/x/*` leaves `/x` out.
    PathWithoutItsRoot = 105, Warning;
    /// Two ALLOW policies are alternatives, and one of them demands less.
    AllowsAreAlternatives = 106, Warning;
    /// A port takes mutual TLS only, and callers without an identity are known.
    StrictShutsOut = 107, Warning;
    /// A client's TLS setting and the server's mode do not fit.
    TlsConflict = 108, Warning;
    /// A gateway's policy looks at the connection's other end, which is a load balancer.
    DirectAddressAtGateway = 109, Warning;
    /// Tokens are checked where they come, and nobody has to bring one.
    TokenNeverRequired = 110, Info;
    /// A rule asks for a token where none is ever verified.
    TokenNeverVerified = 111, Warning;
    /// A rule asks for an identity where the port takes plain text alone.
    IdentityNeverSeen = 112, Warning;
    /// A policy names a port that its workloads do not serve.
    PortNotServed = 113, Warning;
    /// A port's mode is the workload's anyway.
    RedundantPortMode = 114, Info;
    /// A limit is never the one that refuses.
    RateLimitNeverDecides = 115, Warning;
    /// Who is to count for a limit is not there, or cannot be asked.
    RateLimitWithoutService = 116, Warning;
    /// Some workloads of a service's namespace are guarded by policies, and its own by none.
    OpenBesideGuarded = 117, Info;
    /// Keys of a token issuer are fetched in plain text.
    KeysInPlainText = 118, Warning;
    /// Tokens that were issued for somebody else are taken.
    TokenForAnyAudience = 119, Info;
    /// The last tries of a request never happen.
    RetriesCutShort = 201, Warning;
    /// A request that changes something may be done twice.
    RetriesRepeatChanges = 202, Warning;
    /// Rules for a host do not hold for what comes by a gateway.
    RulesNotAtGateway = 203, Warning;
    /// A Gateway opens ports, and no rules are bound to it.
    GatewayWithoutRules = 204, Warning;
    /// A subset has no endpoints.
    SubsetSelectsNothing = 205, Warning;
    /// A service has no endpoints.
    ServiceWithoutEndpoints = 206, Warning;
    /// Whoever leaves out the egress gateway gets out as well.
    EgressCanBeBypassed = 207, Info;
    /// An egress gateway has a host that nobody declares.
    HostNotDeclared = 208, Warning;
    /// A rule sends requests to a service that is not there, or that does not let itself be seen.
    DestinationUnknown = 209, Warning;
    /// A rule sends requests to a port that the service does not have.
    DestinationPortUnknown = 210, Warning;
    /// A VirtualService is bound to a Gateway that is not there.
    GatewayUnknown = 211, Warning;
    /// A Gateway does not take in the hosts of a VirtualService that is bound to it.
    HostNotOnGateway = 212, Warning;
    /// Earlier routes take everything that a route matches.
    RouteNeverReached = 213, Warning;
    /// An earlier match takes everything that a match is about.
    MatchNeverReached = 214, Info;
    /// Two VirtualServices speak for one host in the mesh, and one of them is not heard.
    HostsConflict = 215, Warning;
    /// A DestinationRule is about a host that no service has.
    RulesForNoService = 216, Warning;
    /// Two DestinationRules say something about the same, and one of them is not heard.
    RulesConflict = 217, Warning;
    /// Two Sidecars select the same workload.
    SidecarsSelectSame = 218, Warning;
    /// A namespace has two Sidecars for all its workloads.
    SeveralDefaultSidecars = 219, Warning;
    /// The Service before a gateway has no such port as a Gateway opens.
    GatewayPortNotServed = 220, Warning;
    /// A Gateway's certificate is not there.
    CredentialMissing = 221, Warning;
    /// Two Gateways open one port for one host.
    GatewaysConflict = 222, Warning;
    /// The certificate of a server outside is not looked at.
    ServerNotVerified = 223, Warning;
    /// Nothing says what is spoken at a port.
    PortProtocolUnknown = 224, Info;
    /// Two Services say of one port of a workload that different things are spoken there.
    PortProtocolsConflict = 225, Warning;
    /// Requests are not spread over a service's endpoints.
    BalancingOff = 226, Warning;
    /// A workload is part of no service.
    WorkloadWithoutService = 227, Info;
    /// Two ServiceEntries declare one host, and one of them is not heard.
    EntriesConflict = 228, Warning;
    /// An object is exported to a namespace that is not there.
    ExportedToNobody = 229, Warning;
    /// Connections end after few requests, and each begins with a TLS handshake.
    HandshakesRepeat = 230, Info;
    /// So few endpoints may be ejected that none ever is.
    EjectionNeverHappens = 231, Warning;
    /// Every web site may read answers with its visitor's credentials.
    CorsOpenToAll = 232, Warning;
    /// All requests of a host fail, or wait, because that was injected.
    FaultForEverybody = 233, Warning;
    /// Two Telemetries, ProxyConfigs or MetricDefinitions are for the same workloads, and one of them is not heard.
    SettingsConflict = 234, Warning;
    /// A Sidecar's egress leaves out the collector to which its workloads send spans.
    CollectorHidden = 235, Warning;
    /// Endpoints are in a network of which no gateway is known.
    NetworkWithoutGateway = 236, Warning;
    /// Endpoints behind a network's gateways take no mutual TLS.
    NetworkNeedsMutualTls = 237, Warning;
    /// A network's gateway has no address, or not the port, at which others come.
    NetworkGatewayNotFound = 238, Warning;
    /// Proxies are told of so many services that their memory goes into it.
    ProxyKnowsTooMuch = 239, Warning;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WEFT{:04}", self.number())
    }
}
