//! Answers of the proxy's own, as the configuration wants them (`local_reply_config`): the first mapper whose filter takes
//! the answer may change its status, text and fields, and a format makes the text.

use bytes::Bytes;
use http::{StatusCode, header};
use xds_protos::envoy::extensions::filters::network::http_connection_manager::v3 as proto;

use super::manager::Shared;
use crate::codec::{Headers, Protocol, Reply, RequestHead};
use crate::route::HeaderOps;
use crate::route::config::{data_source, header_ops};
use crate::router::{self, Flow, LocalReply};
use crate::state::ConfigError;
use crate::state::error::collect;
use crate::telemetry::access_log::config::{BodyFormat, filter};
use crate::telemetry::access_log::{Filter, LogContext};

/// The compiled configuration.
#[derive(Debug)]
pub struct LocalReplies {
    mappers: Vec<Mapper>,
    format: Option<BodyFormat>,
}

#[derive(Debug)]
struct Mapper {
    filter: Filter,
    status: Option<StatusCode>,
    body: Option<Bytes>,
    headers: HeaderOps,
    format: Option<BodyFormat>,
}

impl Mapper {
    fn compile(mapper: &proto::ResponseMapper) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let filter = match &mapper.filter {
            Some(proto) => collect(filter(proto).map_err(Vec::from), "filter", &mut errors),
            None => {
                errors.push(ConfigError::missing("filter"));
                None
            }
        };
        let body = mapper
            .body
            .as_ref()
            .and_then(|b| collect(data_source(b).map_err(Vec::from), "body", &mut errors));
        let format = mapper.body_format_override.as_ref().and_then(|f| {
            collect(BodyFormat::compile(f).map_err(Vec::from), "body_format_override", &mut errors)
        });
        let mut wrong = Vec::new();
        let headers = header_ops(&mapper.headers_to_add, &[], "", &mut wrong);
        // The additions of a route have another name.
        errors.extend(
            wrong
                .into_iter()
                .map(|e| ConfigError { path: e.path.replacen("_headers_to_add", "headers_to_add", 1), ..e }),
        );
        let status = mapper
            .status_code
            .map(|code| u16::try_from(code).ok().and_then(|c| StatusCode::from_u16(c).ok()).ok_or(code));
        if let Some(Err(code)) = status {
            errors.push(ConfigError::new("status_code", format!("{code} is no status")));
        }
        match filter {
            Some(filter) if errors.is_empty() => {
                Ok(Self { filter, status: status.and_then(Result::ok), body, headers, format })
            }
            _ => Err(errors),
        }
    }
}

impl LocalReplies {
    /// Compiles the configuration.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn compile(config: &proto::LocalReplyConfig) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let mut mappers = Vec::with_capacity(config.mappers.len());
        for (index, mapper) in config.mappers.iter().enumerate() {
            mappers.extend(collect(Mapper::compile(mapper), format!("mappers[{index}]"), &mut errors));
        }
        let format = config
            .body_format
            .as_ref()
            .and_then(|f| collect(BodyFormat::compile(f).map_err(Vec::from), "body_format", &mut errors));
        if errors.is_empty() { Ok(Self { mappers, format }) } else { Err(errors) }
    }

    /// Changes an answer to the request whose head and record these are.
    fn rewrite(
        &self,
        reply: &mut LocalReply,
        headers: &mut Headers,
        request: Option<&RequestHead>,
        shared: &Shared,
        flow: &Flow,
    ) {
        let mut format = self.format.as_ref();
        for mapper in &self.mappers {
            let before = headers.clone();
            let taken = flow.info(|info| {
                let context = LogContext {
                    request,
                    response: Some(&before),
                    configured: Some(flow),
                    ..LogContext::new(info, &shared.connection)
                };
                let taken = mapper.filter.matches(&context);
                if taken {
                    mapper.headers.apply(headers, &context);
                }
                taken
            });
            if !taken {
                continue;
            }
            if let Some(body) = &mapper.body {
                reply.body = body.clone();
            }
            if let Some(status) = mapper.status {
                reply.status = status;
                flow.info(|i| i.status = Some(status));
            }
            format = mapper.format.as_ref().or(format);
            break;
        }
        let Some(BodyFormat { format, content_type }) = format else { return };
        let mut text = Vec::new();
        flow.info(|info| {
            let context = LogContext {
                request,
                response: Some(headers),
                body: Some(&reply.body),
                configured: Some(flow),
                ..LogContext::new(info, &shared.connection)
            };
            format.write(&context, &mut text);
        });
        reply.body = text.into();
        reply.content_type = content_type.clone().map(Box::new);
    }
}

/// Makes a reply of an answer of the proxy's own to the request of this outline, changed as its route and the configuration
/// want it.
pub fn reply(shared: &Shared, flow: &Flow, outline: &RequestHead, mut reply: LocalReply) -> Reply {
    flow.details(reply.details.clone());
    // After a request that is not as it should be, what follows on the connection is not to be trusted either.
    reply.close |= reply.status == StatusCode::BAD_REQUEST
        && outline.protocol != Protocol::Http2
        && !shared.config.http1.keep_after_bad_request;
    let mut headers = Headers::with_capacity(reply.headers.len() + 4);
    for (name, value) in std::mem::take(&mut reply.headers) {
        headers.append(name, value);
    }
    router::change_own(flow, &shared.connection, &mut headers);
    if let Some(kind) = reply.content_type.take() {
        headers.set(header::CONTENT_TYPE, *kind);
    }
    let (text, content_type) = (reply.body.clone(), headers.get(&header::CONTENT_TYPE).cloned());
    if let Some(replies) = &shared.config.local_replies {
        flow.info(|i| i.status = Some(reply.status));
        let kept = flow.kept_head.borrow();
        replies.rewrite(&mut reply, &mut headers, kept.as_ref(), shared, flow);
    }
    // A text that was changed is of another type, unless whoever changed it said of which.
    let changed = reply.body != text && headers.get(&header::CONTENT_TYPE) == content_type.as_ref();
    if changed {
        headers.remove(&header::CONTENT_TYPE);
    }
    reply.assemble(outline, headers)
}
