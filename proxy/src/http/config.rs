//! `HttpConnectionManager` (Envoy's network filter) to an [`HcmConfig`].

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use ipnet::IpNet;
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use xds_protos::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm;
use xds_protos::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;

mod detection;
mod h1;

pub use self::detection::Detection;
pub use self::h1::h1;

use super::local_reply::LocalReplies;
use super::normalize::{EscapedSlashes, PathRules};
use super::stats::HttpStats;
use super::trace::Tracing;
use crate::codec::Wish;
use crate::codec::h1::H1Options;
use crate::codec::h2::Keepalive;
use crate::filters::FilterList;
use crate::io::Direction;
use crate::route::RouteConfig;
use crate::route::config::duration;
use crate::state::error::collect;
use crate::state::{CompileContext, ConfigError, Slot};
use crate::telemetry::access_log::config::AccessLogConfig;
use crate::telemetry::access_log::{AccessLog, Wanted};

/// Which HTTP version a connection speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CodecType {
    /// ALPN says, else the first bytes.
    #[default]
    Auto,
    /// HTTP/1.
    Http1,
    /// HTTP/2, with prior knowledge.
    Http2,
}

/// What becomes of `server` in responses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerHeader {
    /// It is ours.
    #[default]
    Overwrite,
    /// It is ours where the upstream gave none.
    AppendIfAbsent,
    /// It is the upstream's.
    PassThrough,
}

/// What becomes of `x-forwarded-client-cert`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCert {
    /// Removed.
    #[default]
    Sanitize,
    /// Kept on mutual TLS connections.
    ForwardOnly,
    /// Kept and added to, on mutual TLS connections.
    AppendForward,
    /// Replaced, on mutual TLS connections.
    SanitizeSet,
    /// Kept.
    AlwaysForwardOnly,
}

/// What of a client certificate goes into `x-forwarded-client-cert`, beside `By` and `Hash`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The names are Envoy's.
pub struct ClientCertFields {
    pub subject: bool,
    pub cert: bool,
    pub chain: bool,
    pub uri: bool,
    pub dns: bool,
}

/// What becomes of the authority's port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StripPort {
    /// It stays.
    #[default]
    Keep,
    /// It goes if it is the listener's.
    Matching,
    /// It goes.
    Any,
}

/// What becomes of header names with underscores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Underscores {
    /// Nothing.
    #[default]
    Allow,
    /// 400.
    Reject,
    /// The field is dropped.
    Drop,
}

/// HTTP/1 settings.
#[derive(Clone, Debug, Default)]
pub struct Http1Options {
    /// The codec's.
    pub h1: H1Options,
    /// The authority of HTTP/1.0 requests without one.
    pub default_host_for_http_10: Bytes,
    /// A connection goes on after a request that was answered with 400 before it was routed.
    pub keep_after_bad_request: bool,
}

/// HTTP/2 settings; `None` where the codec's default holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The names are Envoy's.
pub struct Http2Options {
    pub max_concurrent_streams: Option<u32>,
    pub initial_stream_window_size: Option<u32>,
    pub initial_connection_window_size: Option<u32>,
    pub allow_connect: bool,
    pub keepalive: Option<Keepalive>,
}

/// Where routes come from.
#[derive(Clone, Debug)]
pub enum Routes {
    /// In the message.
    Inline(Arc<RouteConfig>),
    /// By RDS.
    Slot(Arc<Slot<RouteConfig>>),
}

/// A compiled connection manager.
pub struct HcmConfig {
    /// The codec.
    pub codec: CodecType,
    /// HTTP/1 settings.
    pub http1: Http1Options,
    /// HTTP/2 settings.
    pub http2: Http2Options,
    /// The largest request head, in bytes.
    pub max_request_headers: usize,
    /// The most header fields in a request.
    pub max_headers_count: usize,
    /// Header names with underscores.
    pub underscores: Underscores,
    /// A connection without streams is closed after this; zero for never. Envoy's default is an hour.
    pub idle_timeout: Duration,
    /// A connection is drained after this; zero for never.
    pub max_connection_duration: Duration,
    /// A connection is drained after so many requests; zero for never.
    pub max_requests_per_connection: u32,
    /// A request's head must come within this; zero for no limit.
    pub request_headers_timeout: Duration,
    /// A draining HTTP/2 connection takes new streams for this long.
    pub drain_timeout: Duration,
    /// A stream is reset when nothing moved for this long; zero for no limit. Envoy's default is five minutes.
    pub stream_idle_timeout: Duration,
    /// A request must be complete within this; zero for no limit.
    pub request_timeout: Duration,
    /// The longest stream.
    pub max_stream_duration: Option<Duration>,
    /// The most of a request that is kept for retries; the listener sets it from its buffer limit.
    pub buffer_limit: u64,
    /// Routes.
    pub routes: Routes,
    /// Filters.
    pub filters: FilterList,
    /// Numbers.
    pub stats: HttpStats,
    /// Path treatment.
    pub path: PathRules,
    /// The immediate peer is the client, and what it says of forwarding is not believed.
    pub use_remote_address: bool,
    /// Trusted proxies before this one.
    pub trusted_hops: u32,
    /// How the client is found where the immediate peer is not it.
    pub detections: Vec<Detection>,
    /// Leave `x-forwarded-for` as it is.
    pub skip_xff_append: bool,
    /// Addresses whose requests are internal.
    pub internal_ranges: Vec<IpNet>,
    /// The `server` field.
    pub server_name: HeaderValue,
    /// When it is set.
    pub server_header: ServerHeader,
    /// Added to `via` on both ways.
    pub via: Option<HeaderValue>,
    /// Make request ids.
    pub generate_request_id: bool,
    /// Keep ids that edge requests bring.
    pub preserve_external_request_id: bool,
    /// Tell the id in responses.
    pub request_id_in_response: bool,
    /// Client certificates.
    pub client_cert: ClientCert,
    /// What of them.
    pub client_cert_fields: ClientCertFields,
    /// Upgrades by lower-case token, and whether they are on where the route does not say.
    pub upgrades: Vec<(Box<[u8]>, bool)>,
    /// Pass `expect: 100-continue` to the upstream.
    pub proxy_100_continue: bool,
    /// Ports in authorities.
    pub strip_port: StripPort,
    /// Drop a dot at the end of the host.
    pub strip_trailing_dot: bool,
    /// Set `user-agent` where there is none, and tell our service cluster's name.
    pub user_agent: Option<HeaderValue>,
    /// What becomes of answers of our own.
    pub local_replies: Option<LocalReplies>,
    /// Tell the port that the client used in `x-forwarded-port`.
    pub append_forwarded_port: bool,
    /// The scheme of every request, in place of its own.
    pub scheme: Option<&'static str>,
    /// The scheme that goes upstream follows the upstream's transport.
    pub scheme_of_upstream: bool,
    /// How requests are traced, where they are.
    pub tracing: Option<Box<Tracing>>,
    /// A line when a request begins, too.
    pub log_start: bool,
    logs: Vec<AccessLogConfig>,
    opened: OnceLock<Vec<AccessLog>>,
    wanted: OnceLock<Arc<Wanted>>,
    /// A log tells what streams take on the wire.
    wish: OnceLock<Wish>,
}

impl std::fmt::Debug for HcmConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HcmConfig")
            .field("codec", &self.codec)
            .field("routes", &self.routes)
            .finish_non_exhaustive()
    }
}

impl HcmConfig {
    /// Compiles a connection manager of a listener of this direction.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn compile(
        config: &proto::HttpConnectionManager,
        direction: Direction,
        context: &CompileContext,
    ) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let codec = match hcm::CodecType::try_from(config.codec_type) {
            Ok(hcm::CodecType::Auto) => CodecType::Auto,
            Ok(hcm::CodecType::Http1) => CodecType::Http1,
            Ok(hcm::CodecType::Http2) => CodecType::Http2,
            _ => {
                errors.push(ConfigError::unsupported("codec_type", "this codec"));
                CodecType::Auto
            }
        };
        let routes = collect(routes(config, context), "", &mut errors);
        let filters = collect(
            FilterList::compile(&config.http_filters, &config.stat_prefix, direction, context),
            "",
            &mut errors,
        );
        let mut logs = Vec::with_capacity(config.access_log.len());
        for (index, log) in config.access_log.iter().enumerate() {
            logs.extend(collect(
                AccessLogConfig::compile(log, context),
                format!("access_log[{index}]"),
                &mut errors,
            ));
        }
        let internal_ranges = internal_ranges(config, &mut errors);
        let detections = detection::detections(config, &mut errors);
        let local_replies = config
            .local_reply_config
            .as_ref()
            .and_then(|c| collect(LocalReplies::compile(c), "local_reply_config", &mut errors));
        let (scheme, scheme_of_upstream) = scheme(config, &mut errors);
        let request_ids =
            collect(request_ids(config).map_err(Vec::from), "request_id_extension", &mut errors);
        let tracing = config.tracing.as_ref().and_then(|tracing| {
            let ids = request_ids.flatten();
            let spawn = filters.as_ref().is_some_and(|f| f.router.start_child_span);
            let compiled = Tracing::compile(tracing, ids, spawn, &config.stat_prefix, direction, context);
            collect(compiled, "tracing", &mut errors).map(Box::new)
        });
        let common = config.common_http_protocol_options.unwrap_or_default();
        let mut time = |value: &Option<prost_types::Duration>, path: &str, default: u64| {
            duration(value.as_ref(), path)
                .map_err(|e| errors.push(e))
                .ok()
                .flatten()
                .unwrap_or(Duration::from_secs(default))
        };
        let in_common = |name: &str| format!("common_http_protocol_options.{name}");
        let idle_timeout = time(&common.idle_timeout, &in_common("idle_timeout"), 3600);
        let max_connection_duration =
            time(&common.max_connection_duration, &in_common("max_connection_duration"), 0);
        let max_stream_duration = common
            .max_stream_duration
            .is_some()
            .then(|| time(&common.max_stream_duration, &in_common("max_stream_duration"), 0));
        let request_headers_timeout = time(&config.request_headers_timeout, "request_headers_timeout", 0);
        let drain_timeout = time(&config.drain_timeout, "drain_timeout", 5);
        let stream_idle_timeout = time(&config.stream_idle_timeout, "stream_idle_timeout", 300);
        let request_timeout = time(&config.request_timeout, "request_timeout", 0);
        let log_options = config.access_log_options;
        let http1 = collect(http1(config).map_err(Vec::from), "http_protocol_options", &mut errors);
        let http2 = http2(config.http2_protocol_options.as_ref(), &mut errors);
        let via = value(&config.via, "via", &mut errors).filter(|v| !v.is_empty());
        let server_name = match config.server_name.as_str() {
            "" => HeaderValue::from_static("envoy"),
            name => {
                value(name, "server_name", &mut errors).unwrap_or_else(|| HeaderValue::from_static("envoy"))
            }
        };
        let user_agent = config
            .add_user_agent
            .unwrap_or(false)
            .then(|| HeaderValue::from_str(&context.node.cluster).ok())
            .flatten();
        let mut upgrades = Vec::new();
        for (index, upgrade) in config.upgrade_configs.iter().enumerate() {
            if !upgrade.filters.is_empty() {
                let path = format!("upgrade_configs[{index}].filters");
                errors.push(ConfigError::unsupported(path, "a filter chain of its own for an upgrade"));
            }
            let token = upgrade.upgrade_type.to_ascii_lowercase().into_bytes().into();
            upgrades.push((token, upgrade.enabled.unwrap_or(true)));
        }
        let (Some(routes), Some(filters), Some(http1), true) = (routes, filters, http1, errors.is_empty())
        else {
            return Err(errors);
        };
        Ok(Self {
            codec,
            http1,
            http2,
            max_request_headers: config.max_request_headers_kb.unwrap_or(60) as usize * 1024,
            max_headers_count: common.max_headers_count.unwrap_or(100) as usize,
            underscores: match common.headers_with_underscores_action() {
                core::http_protocol_options::HeadersWithUnderscoresAction::Allow => Underscores::Allow,
                core::http_protocol_options::HeadersWithUnderscoresAction::RejectRequest => {
                    Underscores::Reject
                }
                core::http_protocol_options::HeadersWithUnderscoresAction::DropHeader => Underscores::Drop,
            },
            idle_timeout,
            max_connection_duration,
            max_requests_per_connection: common.max_requests_per_connection.unwrap_or(0),
            request_headers_timeout,
            drain_timeout,
            stream_idle_timeout,
            request_timeout,
            max_stream_duration,
            buffer_limit: crate::router::DEFAULT_BUFFER_LIMIT,
            routes,
            filters,
            stats: HttpStats::new(&config.stat_prefix),
            path: path_rules(config),
            use_remote_address: config.use_remote_address.unwrap_or(false),
            trusted_hops: config.xff_num_trusted_hops,
            detections,
            skip_xff_append: config.skip_xff_append,
            internal_ranges,
            server_name,
            server_header: match config.server_header_transformation() {
                hcm::ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite,
                hcm::ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent,
                hcm::ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
            },
            via,
            generate_request_id: config.generate_request_id.unwrap_or(true),
            preserve_external_request_id: config.preserve_external_request_id,
            request_id_in_response: config.always_set_request_id_in_response,
            client_cert: match config.forward_client_cert_details() {
                hcm::ForwardClientCertDetails::Sanitize => ClientCert::Sanitize,
                hcm::ForwardClientCertDetails::ForwardOnly => ClientCert::ForwardOnly,
                hcm::ForwardClientCertDetails::AppendForward => ClientCert::AppendForward,
                hcm::ForwardClientCertDetails::SanitizeSet => ClientCert::SanitizeSet,
                hcm::ForwardClientCertDetails::AlwaysForwardOnly => ClientCert::AlwaysForwardOnly,
            },
            client_cert_fields: config
                .set_current_client_cert_details
                .map(|d| ClientCertFields {
                    subject: d.subject.unwrap_or(false),
                    cert: d.cert,
                    chain: d.chain,
                    uri: d.uri,
                    dns: d.dns,
                })
                .unwrap_or_default(),
            upgrades,
            proxy_100_continue: config.proxy_100_continue,
            strip_port: match config.strip_port_mode {
                Some(hcm::StripPortMode::StripAnyHostPort(true)) => StripPort::Any,
                _ if config.strip_matching_host_port => StripPort::Matching,
                _ => StripPort::Keep,
            },
            strip_trailing_dot: config.strip_trailing_host_dot,
            user_agent,
            local_replies,
            append_forwarded_port: config.append_x_forwarded_port,
            scheme,
            scheme_of_upstream,
            tracing,
            log_start: log_options.is_some_and(|o| o.flush_access_log_on_new_request),
            logs,
            opened: OnceLock::new(),
            wanted: OnceLock::new(),
            wish: OnceLock::new(),
        })
    }

    /// Opens the access logs. To be called before the configuration serves, so that a path that cannot be written refuses
    /// it.
    ///
    /// # Errors
    /// A log's file cannot be opened.
    pub fn open_logs(&self) -> std::io::Result<()> {
        let opened = self.logs.iter().map(AccessLogConfig::open).collect::<Result<Vec<_>, _>>()?;
        if !opened.is_empty() {
            let mut wanted = Wanted::default();
            // What is told of a denied request names its trace.
            wanted.request.add(&crate::telemetry::trace::ids::TRACEPARENT);
            opened.iter().for_each(|log| log.wants(&mut wanted));
            if wanted.upstream_wire {
                self.wish.get_or_init(Wish::new);
            }
            let _ = self.wanted.set(Arc::new(wanted));
        }
        let _ = self.opened.set(opened);
        Ok(())
    }

    /// The access logs; none before [`open_logs`](Self::open_logs).
    pub fn logs(&self) -> &[AccessLog] {
        self.opened.get().map_or(&[], Vec::as_slice)
    }

    /// What the access logs speak of; none where there are none.
    pub fn wanted(&self) -> Option<&Arc<Wanted>> {
        self.wanted.get()
    }

    /// Whether they speak of what streams take on the wire.
    pub fn wants_bytes(&self) -> bool {
        self.wish.get().is_some()
    }

    /// The route configuration as it is now.
    pub fn route_config(&self) -> Option<Arc<RouteConfig>> {
        match &self.routes {
            Routes::Inline(config) => Some(config.clone()),
            Routes::Slot(slot) => slot.get(),
        }
    }

    /// Whether requests from this address are internal.
    pub fn is_internal(&self, address: IpAddr) -> bool {
        self.internal_ranges.iter().any(|r| r.contains(&address))
    }
}

fn routes(
    config: &proto::HttpConnectionManager,
    context: &CompileContext,
) -> Result<Routes, Vec<ConfigError>> {
    match &config.route_specifier {
        Some(hcm::RouteSpecifier::Rds(rds)) if rds.route_config_name.is_empty() => {
            Err(ConfigError::missing("rds.route_config_name").into())
        }
        Some(hcm::RouteSpecifier::Rds(rds)) => Ok(Routes::Slot(context.routes.slot(&rds.route_config_name))),
        Some(hcm::RouteSpecifier::RouteConfig(routes)) => RouteConfig::compile_inline(routes, context)
            .map(|r| Routes::Inline(Arc::new(r)))
            .map_err(crate::state::error::at("route_config")),
        Some(hcm::RouteSpecifier::ScopedRoutes(_)) => {
            Err(ConfigError::unsupported("scoped_routes", "scoped routes").into())
        }
        None => Err(ConfigError::missing("route_specifier").into()),
    }
}

/// The scheme that replaces every request's, and whether the upstream's transport decides.
fn scheme(
    config: &proto::HttpConnectionManager,
    errors: &mut Vec<ConfigError>,
) -> (Option<&'static str>, bool) {
    use core::scheme_header_transformation::Transformation;
    let Some(transformation) = &config.scheme_header_transformation else { return (None, false) };
    let scheme = match &transformation.transformation {
        None => None,
        Some(Transformation::SchemeToOverwrite(scheme)) => match scheme.as_str() {
            "http" => Some("http"),
            "https" => Some("https"),
            other => {
                let path = "scheme_header_transformation.scheme_to_overwrite";
                errors.push(ConfigError::new(path, format!("{other:?} is neither http nor https")));
                None
            }
        },
    };
    (scheme, transformation.match_upstream)
}

/// How ids of requests tell whether they are traced.
fn request_ids(config: &proto::HttpConnectionManager) -> Result<Option<UuidRequestIdConfig>, ConfigError> {
    let any = config.request_id_extension.as_ref().and_then(|e| e.typed_config.as_ref());
    any.map(|any| any.unpack().map_err(|e| ConfigError::new("typed_config", e.to_string()))).transpose()
}

fn path_rules(config: &proto::HttpConnectionManager) -> PathRules {
    PathRules {
        normalize: config.normalize_path.unwrap_or(false),
        merge_slashes: config.merge_slashes,
        escaped_slashes: match config.path_with_escaped_slashes_action() {
            hcm::PathWithEscapedSlashesAction::ImplementationSpecificDefault
            | hcm::PathWithEscapedSlashesAction::KeepUnchanged => EscapedSlashes::Keep,
            hcm::PathWithEscapedSlashesAction::RejectRequest => EscapedSlashes::Reject,
            hcm::PathWithEscapedSlashesAction::UnescapeAndRedirect => EscapedSlashes::UnescapeAndRedirect,
            hcm::PathWithEscapedSlashesAction::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
        },
    }
}

fn http1(config: &proto::HttpConnectionManager) -> Result<Http1Options, ConfigError> {
    let options = config.http_protocol_options.as_ref();
    let own = options.and_then(|o| o.override_stream_error_on_invalid_http_message);
    Ok(Http1Options {
        h1: h1(H1Options::default(), options)?,
        default_host_for_http_10: options
            .map(|o| o.default_host_for_http_10.clone())
            .unwrap_or_default()
            .into(),
        keep_after_bad_request: own.or(config.stream_error_on_invalid_http_message).unwrap_or(false),
    })
}

/// `connection_keepalive`; none where no PING goes out.
///
/// # Errors
/// A duration is wrong, or the timeout is missing.
pub fn keepalive(options: &core::Http2ProtocolOptions) -> Result<Option<Keepalive>, ConfigError> {
    let Some(settings) = &options.connection_keepalive else { return Ok(None) };
    let at = |e: ConfigError| e.at("connection_keepalive");
    let interval = duration(settings.interval.as_ref(), "interval").map_err(at)?;
    let timeout = duration(settings.timeout.as_ref(), "timeout").map_err(at)?;
    let timeout = timeout.ok_or_else(|| ConfigError::missing("connection_keepalive.timeout"))?;
    Ok(interval.filter(|i| !i.is_zero()).map(|interval| Keepalive { interval, timeout }))
}

fn http2(options: Option<&core::Http2ProtocolOptions>, errors: &mut Vec<ConfigError>) -> Http2Options {
    let Some(options) = options else { return Http2Options::default() };
    let keepalive = keepalive(options).map_err(|e| errors.push(e.at("http2_protocol_options"))).ok();
    Http2Options {
        keepalive: keepalive.flatten(),
        max_concurrent_streams: options.max_concurrent_streams,
        initial_stream_window_size: options.initial_stream_window_size,
        initial_connection_window_size: options.initial_connection_window_size,
        allow_connect: options.allow_connect,
    }
}

fn internal_ranges(config: &proto::HttpConnectionManager, errors: &mut Vec<ConfigError>) -> Vec<IpNet> {
    let ranges = config.internal_address_config.iter().flat_map(|c| &c.cidr_ranges).enumerate();
    ranges
        .filter_map(|(index, range)| {
            let length = u8::try_from(range.prefix_len.unwrap_or(0)).unwrap_or(u8::MAX);
            let net = range.address_prefix.parse().ok().and_then(|a: IpAddr| IpNet::new(a, length).ok());
            if net.is_none() {
                let path = format!("internal_address_config.cidr_ranges[{index}]");
                errors.push(ConfigError::new(path, "is not an address range"));
            }
            net
        })
        .collect()
}

fn value(text: &str, path: &str, errors: &mut Vec<ConfigError>) -> Option<HeaderValue> {
    HeaderValue::from_str(text)
        .map_err(|_| errors.push(ConfigError::new(path, "holds a character that no header value may hold")))
        .ok()
}
