//! What the mesh is now: an immutable [`World`] of services, endpoints and policies.
//!
//! A change of configuration goes `ingest` -> **`model`** -> `queue` -> `render` -> `serve`. This stage holds no files, no
//! sockets and no clock; a World is built once, shared by reference count, and every answer about it is a pure function.

pub mod acme;
mod addresses;
mod aliases;
mod allocation;
pub mod authorization_policy;
pub mod change;
pub mod compression;
pub mod credentials;
pub mod destination_rule;
pub mod expand;
pub mod extension_provider;
pub mod external_credential;
pub mod gateway;
pub mod gateway_api;
pub mod health_check;
pub mod host;
pub mod ip_deny_list;
pub mod keys;
pub mod kubernetes;
pub mod labels;
pub mod lookup;
pub mod mesh_config;
pub mod meta;
pub mod metric_definition;
pub mod networks;
pub mod peer_authentication;
pub mod place;
pub mod proxy_config;
pub mod quarantine;
pub mod rate_limit;
pub mod registry;
pub mod request_authentication;
pub mod service;
pub mod service_entry;
pub mod service_mesh_config;
pub mod severity;
pub mod sidecar;
pub mod telemetry;
pub mod tracing;
pub mod traffic_management;
pub mod trust;
pub mod values;
pub mod virtual_service;
pub mod workload_group;
pub mod world;

pub use acme::{Acme, AcmeCertificate};
pub use authorization_policy::AuthorizationPolicy;
pub use change::{Change, Moved};
pub use compression::Compression;
pub use credentials::{Credential, Credentials};
pub use destination_rule::DestinationRule;
pub use external_credential::ExternalCredential;
pub use gateway::Gateway;
pub use health_check::HealthCheck;
pub use ip_deny_list::{AddressSet, DenyLists, IpDenyList, ListSource};
pub use keys::{KeySets, KeySource};
pub use kubernetes::{Backends, KubernetesService, Pod, TlsSecret};
pub use lookup::{MergedRule, PortPolicy, effective_policy, served_hosts};
pub use mesh_config::MeshConfig;
pub use meta::{Kind, Meta, Object, ObjectKey, Source};
pub use networks::{MeshNetworks, NetworkGateway, Networks};
pub use peer_authentication::{EffectivePeerMode, PeerAuthentication};
pub use rate_limit::RateLimit;
pub use request_authentication::RequestAuthentication;
pub use service::{
    Endpoint, ExportTo, Protocol, Resolution, Service, ServiceLocation, ServicePort, TargetPort, Workload,
};
pub use service_entry::{ServiceEntry, WorkloadEntry};
pub use service_mesh_config::ServiceMeshConfig;
pub use severity::Severity;
pub use sidecar::Sidecar;
pub use telemetry::Telemetry;
pub use traffic_management::TrafficManagement;
pub use trust::Trust;
pub use values::{Labels, Locality, StringMatch, Timespan};
pub use virtual_service::VirtualService;
pub use world::{Objects, World};
