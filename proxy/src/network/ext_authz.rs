//! `envoy.filters.network.ext_authz`: asks another service about a connection when its first bytes come. They wait for the
//! answer, and go nowhere if it is no.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::extensions::filters::network::ext_authz::v3 as pb;
use xds_protos::envoy::service::auth::v3::CheckRequest;

use crate::filters::ext_authz::check::Told;
use crate::filters::ext_authz::config::TIMEOUT;
use crate::filters::ext_authz::grpc::{METHOD, read};
use crate::filters::ext_authz::{Answer, NETWORK_NAMESPACE};
use crate::io::metadata::{Datum, Ruler, Ruling};
use crate::io::{ConnectionInfo, Pass};
use crate::route::config::metadata_match;
use crate::route::values::MetadataMatch;
use crate::router::grpc::{GrpcService, only_v3};
use crate::state::error::{at, collect};
use crate::state::{CompileContext, ConfigError};
use crate::telemetry::registry::{Counter, Gauge, Group};

/// The compiled filter.
pub struct NetworkExtAuthz {
    service: Arc<GrpcService>,
    told: Told,
    failure_mode_allow: bool,
    enabled_metadata: Option<MetadataMatch>,
    stats: Arc<Stats>,
}

struct Stats {
    _group: Arc<Group>,
    total: Counter,
    ok: Counter,
    denied: Counter,
    error: Counter,
    failure_mode_allowed: Counter,
    disabled: Counter,
    cx_closed: Counter,
    active: Gauge,
}

/// A connection's question, while it is open and after. Dropped, it is taken back.
pub struct Asking {
    /// Whether the connection may go on, once that is known.
    known: Arc<Mutex<Option<bool>>>,
    task: AbortHandle,
    stats: Arc<Stats>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.task.abort();
        self.stats.active.add(-1);
    }
}

impl NetworkExtAuthz {
    /// Compiles the filter.
    ///
    /// # Errors
    /// Everything that is wrong in its settings.
    pub fn compile(config: &pb::ExtAuthz, ctx: &CompileContext) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        only_v3(config.transport_api_version, &mut errors);
        let service = match &config.grpc_service {
            None => Err(ConfigError::missing("grpc_service").into()),
            Some(service) => GrpcService::compile(service, TIMEOUT, ctx).map_err(at("grpc_service")),
        };
        let service = collect(service, "", &mut errors);
        let enabled_metadata = config.filter_enabled_metadata.as_ref().and_then(|m| {
            let matching = metadata_match(m).map_err(Vec::<ConfigError>::from);
            collect(matching, "filter_enabled_metadata", &mut errors)
        });
        if config.stat_prefix.is_empty() {
            errors.push(ConfigError::missing("stat_prefix"));
        }
        let (Some(service), true) = (service, errors.is_empty()) else { return Err(errors) };
        let group = Group::new(format!("ext_authz.{}", config.stat_prefix), Vec::new());
        Ok(Self {
            service: Arc::new(service),
            told: Told {
                peer_certificate: config.include_peer_certificate,
                tls_session: config.include_tls_session,
                ..Told::default()
            },
            failure_mode_allow: config.failure_mode_allow,
            enabled_metadata,
            stats: Arc::new(Stats {
                total: group.counter("total"),
                ok: group.counter("ok"),
                denied: group.counter("denied"),
                error: group.counter("error"),
                failure_mode_allowed: group.counter("failure_mode_allowed"),
                disabled: group.counter("disabled"),
                cx_closed: group.counter("cx_closed"),
                active: group.gauge("active"),
                _group: group,
            }),
        })
    }

    /// Whether somebody is asked about this connection at all.
    pub fn asks(&self, info: &ConnectionInfo) -> bool {
        let metadata = info.notes.as_ref().map(|n| n.metadata.lock().clone()).unwrap_or_default();
        self.enabled_metadata.as_ref().is_none_or(|m| m.matches_dynamic(&metadata))
    }

    /// Whether bytes that came may go on. `asking` is the connection's question, if it has been asked.
    pub fn data(&self, info: &Arc<ConnectionInfo>, asking: &mut Option<Asking>) -> Pass {
        match asking {
            Some(asked) => match *asked.known.lock() {
                Some(true) => Pass::Always,
                Some(false) => Pass::Never(None),
                // Whoever was to answer has gone.
                None => Pass::Never(None),
            },
            None => {
                if !self.asks(info) {
                    self.stats.disabled.inc();
                    return Pass::Always;
                }
                let (asked, known) = self.ask(info.clone());
                *asking = Some(asked);
                Pass::Later(known)
            }
        }
    }

    fn ask(&self, info: Arc<ConnectionInfo>) -> (Asking, oneshot::Receiver<()>) {
        self.stats.total.inc();
        self.stats.active.add(1);
        let mut attributes = self.told.of_connection(&info);
        attributes.metadata_context = Some(core::Metadata::default());
        let request = CheckRequest { attributes: Some(attributes) };
        let known = Arc::new(Mutex::new(None));
        let (sender, receiver) = oneshot::channel();
        let (service, stats, cell) = (self.service.clone(), self.stats.clone(), known.clone());
        let failure_mode_allow = self.failure_mode_allow;
        let task = tokio::task::spawn_local(async move {
            let answer = match service.ask(METHOD, &request, &info).await {
                Ok(response) => read(response),
                Err(_) => Answer::Error(None),
            };
            let (allowed, details) = match answer {
                Answer::Ok(changes) => {
                    stats.ok.inc();
                    if let (Some(notes), Some(said)) = (&info.notes, changes.metadata) {
                        let mut metadata = notes.metadata.lock();
                        for (key, value) in said.fields {
                            metadata.set(NETWORK_NAMESPACE, &key.into(), Datum::Other(Box::new(value)));
                        }
                    }
                    (true, "")
                }
                Answer::Denied(_) => {
                    stats.denied.inc();
                    (false, "ext_authz_denied")
                }
                Answer::Error(_) => {
                    stats.error.inc();
                    if failure_mode_allow {
                        stats.failure_mode_allowed.inc();
                    }
                    (failure_mode_allow, "ext_authz_error")
                }
            };
            if let Some(notes) = &info.notes {
                notes.ruled(Ruling { by: Ruler::Service, allowed, tried: false, name: None });
            }
            if !allowed {
                stats.cx_closed.inc();
                crate::telemetry::events::connection(&info, details);
                if let Some(notes) = &info.notes {
                    *notes.unauthorized.lock() = Some(details);
                }
            }
            *cell.lock() = Some(allowed);
            // If nobody waits any more, the connection has gone.
            let _ = sender.send(());
        });
        (Asking { known, task: task.abort_handle(), stats: self.stats.clone() }, receiver)
    }
}
