//! `envoy.config.accesslog.v3.AccessLog` -> [`AccessLog`]. Opening the file is left to [`AccessLogConfig::open`]; what goes to
//! collectors is compiled in `router::logs::config`.

use std::path::PathBuf;
use std::sync::Arc;

use xds_protos::envoy::config::accesslog::v3 as pb;
use xds_protos::envoy::config::core::v3::substitution_format_string::Format as Source;
use xds_protos::envoy::config::core::v3::{DataSource, SubstitutionFormatString, data_source};
use xds_protos::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use xds_protos::envoy::extensions::access_loggers::{file, stream};
use xds_protos::prost_types::{self, value::Kind};

use super::filter::{Comparison, Filter};
use super::format::{Format, FormatError};
use super::{AccessLog, Destination, LogType, Sink};
use crate::codec::headers::HeaderValue;
use crate::route::config::{Chance, chance, header_match};
use crate::router::logs::config as collectors;
use crate::state::error::at;
use crate::state::{CompileContext, ConfigError};
use crate::telemetry::Flags;
use crate::telemetry::cel::Expression;

/// A compiled access log whose file is not opened yet.
#[derive(Clone, Debug)]
pub struct AccessLogConfig {
    filter: Option<Filter>,
    to: To,
}

#[derive(Clone, Debug)]
enum To {
    File(Arc<Format>, PathBuf),
    Collector(Destination),
}

impl AccessLogConfig {
    /// Compiles the message; a logger or filter that Weft does not have is refused by its name.
    pub fn compile(proto: &pb::AccessLog, context: &CompileContext) -> Result<Self, Vec<ConfigError>> {
        let filter =
            proto.filter.as_ref().map(|f| self::filter(f).map_err(|e| e.at("filter"))).transpose()?;
        let Some(pb::access_log::ConfigType::TypedConfig(any)) = &proto.config_type else {
            return Err(ConfigError::missing("typed_config").into());
        };
        let bad = |e: xds_protos::UnpackError| ConfigError::new("typed_config", e.to_string());
        let (path, format) = if any.is::<file::v3::FileAccessLog>() {
            let file: file::v3::FileAccessLog = any.unpack().map_err(bad)?;
            if file.path.is_empty() {
                return Err(ConfigError::missing("typed_config.path").into());
            }
            (PathBuf::from(&file.path), file_format(file.access_log_format.as_ref()))
        } else if any.is::<stream::v3::StdoutAccessLog>() {
            let log: stream::v3::StdoutAccessLog = any.unpack().map_err(bad)?;
            let stream::v3::stdout_access_log::AccessLogFormat::LogFormat(format) =
                log.access_log_format.unwrap_or_else(|| {
                    stream::v3::stdout_access_log::AccessLogFormat::LogFormat(default_format())
                });
            ("/dev/stdout".into(), substitution(&format))
        } else if any.is::<stream::v3::StderrAccessLog>() {
            let log: stream::v3::StderrAccessLog = any.unpack().map_err(bad)?;
            let stream::v3::stderr_access_log::AccessLogFormat::LogFormat(format) =
                log.access_log_format.unwrap_or_else(|| {
                    stream::v3::stderr_access_log::AccessLogFormat::LogFormat(default_format())
                });
            ("/dev/stderr".into(), substitution(&format))
        } else if let Some(found) = collectors::destination(any, context) {
            return Ok(Self { filter, to: To::Collector(found.map_err(at("typed_config"))?) });
        } else {
            let what = format!("the access logger {}", any.type_name());
            return Err(ConfigError::unsupported("typed_config", what).into());
        };
        let format = format.map_err(|e| e.at("typed_config"))?;
        Ok(Self { filter, to: To::File(Arc::new(format), path) })
    }

    /// Opens the destination.
    pub fn open(&self) -> std::io::Result<AccessLog> {
        let destination = match &self.to {
            To::File(format, path) => Destination::Line(format.clone(), Sink::open(path)?),
            To::Collector(destination) => destination.clone(),
        };
        Ok(AccessLog { filter: self.filter.clone(), destination })
    }
}

/// How the text of an answer of the proxy's own is made.
#[derive(Debug)]
pub struct BodyFormat {
    /// The format.
    pub format: Format,
    /// The type of what it makes; none for plain text.
    pub content_type: Option<HeaderValue>,
}

impl BodyFormat {
    /// Compiles a format and its type.
    ///
    /// # Errors
    /// What is wrong in it.
    pub fn compile(config: &SubstitutionFormatString) -> Result<Self, ConfigError> {
        let format = substitution(config)?.known_early().map_err(refused)?;
        let content_type = match config.content_type.as_str() {
            "" if format.is_json() => Some(HeaderValue::from_static("application/json")),
            "" => None,
            text => Some(
                HeaderValue::from_str(text)
                    .map_err(|_| ConfigError::new("content_type", "is no header value"))?,
            ),
        };
        Ok(Self { format, content_type })
    }
}

fn default_format() -> SubstitutionFormatString {
    let text = DataSource {
        specifier: Some(data_source::Specifier::InlineString(Format::ENVOY.to_owned())),
        ..DataSource::default()
    };
    SubstitutionFormatString { format: Some(Source::TextFormatSource(text)), ..Default::default() }
}

#[allow(deprecated, reason = "Envoy still takes the old fields, so configurations still have them")]
fn file_format(format: Option<&file::v3::file_access_log::AccessLogFormat>) -> Result<Format, ConfigError> {
    use file::v3::file_access_log::AccessLogFormat as F;
    match format {
        None => text(Format::ENVOY).map_err(|e| e.at("format")),
        Some(F::Format(source)) => text(source).map_err(|e| e.at("format")),
        Some(F::JsonFormat(object)) => json(object).map_err(|e| e.at("json_format")),
        Some(F::TypedJsonFormat(object)) => json(object).map_err(|e| e.at("typed_json_format")),
        Some(F::LogFormat(format)) => substitution(format).map_err(|e| e.at("log_format")),
    }
}

#[allow(deprecated, reason = "Envoy still takes the old fields, so configurations still have them")]
/// Compiles a format.
///
/// # Errors
/// What is wrong in it.
pub fn substitution(format: &SubstitutionFormatString) -> Result<Format, ConfigError> {
    let compiled = match &format.format {
        Some(Source::TextFormat(source)) => text(source).map_err(|e| e.at("text_format")),
        Some(Source::JsonFormat(object)) => json(object).map_err(|e| e.at("json_format")),
        Some(Source::TextFormatSource(source)) => match &source.specifier {
            Some(data_source::Specifier::InlineString(source)) => {
                text(source).map_err(|e| e.at("text_format_source.inline_string"))
            }
            Some(data_source::Specifier::InlineBytes(bytes)) => {
                text(&String::from_utf8_lossy(bytes)).map_err(|e| e.at("text_format_source.inline_bytes"))
            }
            _ => {
                Err(ConfigError::unsupported("text_format_source", "a format from a file or the environment"))
            }
        },
        None => Err(ConfigError::missing("format")),
    };
    compiled.map(|f| f.omit_empty(format.omit_empty_values))
}

fn text(source: &str) -> Result<Format, ConfigError> {
    Format::text(source).map_err(refused)
}

fn json(object: &prost_types::Struct) -> Result<Format, ConfigError> {
    Format::json(&object_value(object)).map_err(refused)
}

fn refused(error: FormatError) -> ConfigError {
    ConfigError::new("", error.to_string())
}

fn object_value(object: &prost_types::Struct) -> serde_json::Value {
    object.fields.iter().map(|(k, v)| (k.clone(), value(v))).collect::<serde_json::Map<_, _>>().into()
}

fn value(source: &prost_types::Value) -> serde_json::Value {
    match &source.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        // A number that could be an integer is written as one.
        Some(Kind::NumberValue(n)) if n.fract() == 0.0 && n.abs() < 9e15 => (*n as i64).into(),
        Some(Kind::NumberValue(n)) => (*n).into(),
        Some(Kind::StringValue(s)) => s.clone().into(),
        Some(Kind::BoolValue(b)) => (*b).into(),
        Some(Kind::StructValue(s)) => object_value(s),
        Some(Kind::ListValue(l)) => l.values.iter().map(value).collect(),
    }
}

/// Compiles a filter.
///
/// # Errors
/// What is wrong in it or not supported.
pub fn filter(proto: &pb::AccessLogFilter) -> Result<Filter, ConfigError> {
    use pb::access_log_filter::FilterSpecifier as F;
    match &proto.filter_specifier {
        None => Err(ConfigError::missing("filter_specifier")),
        Some(F::StatusCodeFilter(f)) => comparison(f.comparison.as_ref())
            .map(Filter::Status)
            .map_err(|e| e.at("status_code_filter.comparison")),
        Some(F::DurationFilter(f)) => comparison(f.comparison.as_ref())
            .map(Filter::Duration)
            .map_err(|e| e.at("duration_filter.comparison")),
        Some(F::ResponseFlagFilter(f)) => {
            let mut flags = Flags::default();
            for (i, letters) in f.flags.iter().enumerate() {
                let flag = Flags::parse(letters).ok_or_else(|| {
                    let message = format!("there is no response flag {letters}");
                    ConfigError::new(format!("response_flag_filter.flags[{i}]"), message)
                })?;
                flags.set(flag);
            }
            Ok(Filter::ResponseFlags(flags))
        }
        Some(F::AndFilter(f)) => all(&f.filters).map(Filter::And).map_err(|e| e.at("and_filter")),
        Some(F::OrFilter(f)) => all(&f.filters).map(Filter::Or).map_err(|e| e.at("or_filter")),
        Some(F::HeaderFilter(f)) => match &f.header {
            None => Err(ConfigError::missing("header_filter.header")),
            Some(header) => header_match(header)
                .map(|h| Filter::Header(Box::new(h)))
                .map_err(|e| first(e).at("header_filter.header")),
        },
        Some(F::GrpcStatusFilter(f)) => {
            let statuses = f.statuses.iter().map(|s| s.unsigned_abs()).collect();
            Ok(unless(f.exclude, Filter::GrpcStatus(statuses)))
        }
        Some(F::LogTypeFilter(f)) => {
            let types = f.types.iter().map(|t| occasion(*t)).collect();
            Ok(unless(f.exclude, Filter::Occasion(types)))
        }
        Some(F::RuntimeFilter(f)) => {
            let percent = f.percent_sampled.as_ref();
            let chance = percent.map_or(Ok(Chance { numerator: 0, denominator: 100 }), chance);
            chance
                .map(|c| Filter::Chance(c, f.use_independent_randomness))
                .map_err(|e| e.at("runtime_filter.percent_sampled"))
        }
        // No request is one of a health check: there is no filter that would find it to be one.
        Some(F::NotHealthCheckFilter(_)) => Ok(Filter::Any),
        Some(F::ExtensionFilter(f)) => extension(f).map_err(|e| e.at("extension_filter.typed_config")),
        Some(other) => {
            let name = match other {
                F::TraceableFilter(_) => "traceable_filter",
                F::MetadataFilter(_) => "metadata_filter",
                _ => "filter_specifier",
            };
            Err(ConfigError::unsupported(name, "this access log filter"))
        }
    }
}

/// A filter of another package: an expression in CEL.
fn extension(proto: &pb::ExtensionFilter) -> Result<Filter, ConfigError> {
    let Some(pb::extension_filter::ConfigType::TypedConfig(any)) = &proto.config_type else {
        return Err(ConfigError::missing(""));
    };
    if !any.is::<ExpressionFilter>() {
        return Err(ConfigError::unsupported("", format!("the access log filter {}", any.type_name())));
    }
    let config: ExpressionFilter = any.unpack().map_err(|e| ConfigError::new("", e.to_string()))?;
    let expression =
        Expression::compile(&config.expression).map_err(|reason| ConfigError::new("expression", reason))?;
    Ok(Filter::Expression(Arc::new(expression)))
}

fn unless(exclude: bool, filter: Filter) -> Filter {
    if exclude { Filter::Not(Box::new(filter)) } else { filter }
}

fn first(errors: Vec<ConfigError>) -> ConfigError {
    errors.into_iter().next().unwrap_or_else(|| ConfigError::new("", "is not well-formed"))
}

/// Occasions on which nothing is logged here match nothing.
fn occasion(kind: i32) -> LogType {
    use xds_protos::envoy::data::accesslog::v3::AccessLogType as T;
    match T::try_from(kind) {
        Ok(T::TcpConnectionEnd) => LogType::TcpConnectionEnd,
        Ok(T::DownstreamStart) => LogType::DownstreamStart,
        Ok(T::DownstreamPeriodic) => LogType::DownstreamPeriodic,
        Ok(T::DownstreamEnd) => LogType::DownstreamEnd,
        _ => LogType::NotSet,
    }
}

fn all(filters: &[pb::AccessLogFilter]) -> Result<Vec<Filter>, ConfigError> {
    filters.iter().enumerate().map(|(i, f)| filter(f).map_err(|e| e.at(format!("filters[{i}]")))).collect()
}

fn comparison(proto: Option<&pb::ComparisonFilter>) -> Result<Comparison, ConfigError> {
    let proto = proto.ok_or_else(|| ConfigError::missing(""))?;
    let value = proto.value.as_ref().ok_or_else(|| ConfigError::missing("value"))?;
    // The runtime key is for overriding at run time; the default is what holds without one, as in Istio's use of it.
    Ok(match pb::comparison_filter::Op::try_from(proto.op) {
        Ok(pb::comparison_filter::Op::Eq) => Comparison::Equal(value.default_value),
        Ok(pb::comparison_filter::Op::Ge) => Comparison::AtLeast(value.default_value),
        Ok(pb::comparison_filter::Op::Le) => Comparison::AtMost(value.default_value),
        Ok(pb::comparison_filter::Op::Ne) => Comparison::NotEqual(value.default_value),
        Err(_) => return Err(ConfigError::new("op", format!("there is no operator {}", proto.op))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use xds_protos::Any;

    fn log(path: &str, format: &str) -> pb::AccessLog {
        #[allow(deprecated)]
        let file = file::v3::FileAccessLog {
            path: path.to_owned(),
            access_log_format: Some(file::v3::file_access_log::AccessLogFormat::Format(format.to_owned())),
        };
        pb::AccessLog {
            config_type: Some(pb::access_log::ConfigType::TypedConfig(Any::pack(&file))),
            ..Default::default()
        }
    }

    #[test]
    fn a_file_log_compiles_and_a_wrong_format_is_refused_at_its_place() {
        let context = CompileContext::for_tests();
        let config = AccessLogConfig::compile(&log("/dev/stdout", "%PROTOCOL%\n"), &context).unwrap();
        assert!(matches!(config.to, To::File(_, path) if path == std::path::Path::new("/dev/stdout")));
        let errors = AccessLogConfig::compile(&log("/dev/stdout", "%NOPE%\n"), &context).unwrap_err();
        assert_eq!(errors[0].path, "typed_config.format");
        let errors = AccessLogConfig::compile(&log("", "x"), &context).unwrap_err();
        assert_eq!(errors[0].path, "typed_config.path");
    }

    #[test]
    fn istios_listener_filter_compiles_and_an_unknown_flag_is_refused() {
        let filter = |flag: &str| pb::AccessLogFilter {
            filter_specifier: Some(pb::access_log_filter::FilterSpecifier::ResponseFlagFilter(
                pb::ResponseFlagFilter { flags: vec![flag.to_owned()] },
            )),
        };
        let mut proto = log("/dev/stdout", "x");
        proto.filter = Some(filter("NR"));
        assert!(AccessLogConfig::compile(&proto, &CompileContext::for_tests()).is_ok());
        proto.filter = Some(filter("XX"));
        let errors = AccessLogConfig::compile(&proto, &CompileContext::for_tests()).unwrap_err();
        assert_eq!(errors[0].path, "filter.response_flag_filter.flags[0]");
    }
}
