//! The kinds of the Gateway API (gateway.networking.k8s.io), as far as they are honoured.
//!
//! They are no vocabulary of the stages behind `ingest`, which makes Gateways and VirtualServices of them; only there they are
//! read.

mod gateway;
mod grant;
mod route;
mod target;

pub use gateway::{
    AddressKind, AllowedRoutes, ApiGateway, FromNamespaces, GatewayAddress, GatewayClass, Infrastructure,
    LabelSelector, Listener, ListenerTls, Requirement, RouteKind, RouteNamespaces, SecretRef, TlsTermination,
};
pub use grant::{GrantFrom, GrantTo, ReferenceGrant};
pub use route::{
    BackendRef, CorsFilter, Filter, FilterKind, Fraction, GrpcRoute, GrpcRouteMatch, GrpcRouteRule,
    HeaderFilter, HeaderValue, HttpPathMatch, HttpRoute, HttpRouteMatch, HttpRouteRule, MatchKind,
    MethodMatch, MirrorFilter, ParentRef, PathKind, PathModifier, PathModifierKind, RedirectFilter, Retry,
    RewriteFilter, Timeouts, TlsRoute, TlsRouteRule, ValueMatch,
};

pub use target::TargetRef;

/// The group of all of them.
pub const GROUP: &str = "gateway.networking.k8s.io";

/// How a GatewayClass names Weft.
pub const CONTROLLER: &str = "weft.dev/gateway-controller";

/// The label by which workloads say which Gateway of their namespace they serve.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
