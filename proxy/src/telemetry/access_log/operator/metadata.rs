//! Metadata in format strings: what filters say of a stream, and what configuration says of where it came in and goes.

use xds_protos::value::{struct_to_json, to_json};

use super::super::{FormatError, LogContext, Of};
use super::{Operator, required, show, text};
use crate::io::metadata::at_path;

/// `NAMESPACE:KEY:KEY...`; without keys it is the whole namespace.
pub(super) fn path(name: &str, arguments: Option<&str>) -> Result<Vec<String>, FormatError> {
    let path: Vec<_> = arguments.unwrap_or_default().split(':').map(str::to_owned).collect();
    if path[0].is_empty() {
        return Err(FormatError::Arguments(name.to_owned(), "give it a namespace, such as a filter's name"));
    }
    Ok(path)
}

/// What configuration says, of a thing that the operator's name tells.
pub(super) fn configured(of: Of, name: &str, arguments: Option<&str>) -> Result<Operator, FormatError> {
    path(name, arguments).map(|path| Operator::ConfiguredMetadata(of, path))
}

/// `%METADATA(what:NAMESPACE:KEY...)%`.
pub(super) fn of_any(name: &str, arguments: Option<&str>) -> Result<Operator, FormatError> {
    let (what, rest) = arguments.and_then(|a| a.split_once(':')).unwrap_or_default();
    let of = match what {
        "DYNAMIC" => return path(name, Some(rest)).map(Operator::DynamicMetadata),
        "CLUSTER" => Of::Cluster,
        "ROUTE" => Of::Route,
        "UPSTREAM_HOST" => Of::Host,
        "LISTENER" => Of::Listener,
        "LISTENER_FILTER_CHAIN" => Of::Chain,
        "VIRTUAL_HOST" => Of::VirtualHost,
        _ => return Err(FormatError::Arguments(name.to_owned(), xds_protos::format::OF)),
    };
    configured(of, name, Some(rest))
}

/// `KEY:PLAIN` or `KEY:TYPED`: an object's name, and whether it is written as it is.
pub(super) fn filter_state(name: &str, arguments: Option<&str>) -> Result<(String, bool), FormatError> {
    let arguments = required(name, arguments, "give it an object's name, such as (KEY:PLAIN)")?;
    let (key, plain) = match arguments.rsplit_once(':') {
        Some((key, "PLAIN")) => (key, true),
        Some((key, "TYPED")) => (key, false),
        Some((_, _)) if arguments.contains(":FIELD:") => {
            return Err(FormatError::Arguments(name.to_owned(), "objects are texts and have no fields"));
        }
        // Names of objects have colons in them, too.
        _ => (arguments, false),
    };
    Ok((key.to_owned(), plain))
}

pub(super) fn found_configured(
    context: &LogContext<'_>,
    of: Of,
    path: &[String],
) -> Option<serde_json::Value> {
    let (namespace, keys) = path.split_first()?;
    let connection = context.connection;
    let fields = match of {
        Of::Listener => connection.listener_metadata.as_ref()?.namespace(namespace)?.clone(),
        Of::Chain => connection.chain_metadata.as_ref()?.namespace(namespace)?.clone(),
        _ => context.configured?.namespace(of, context.stream, namespace)?,
    };
    match keys {
        [] => Some(struct_to_json(&fields)),
        keys => at_path(&fields, keys).map(to_json),
    }
}

pub(super) fn found(context: &LogContext<'_>, path: &[String]) -> Option<serde_json::Value> {
    let (namespace, keys) = path.split_first()?;
    match keys {
        [] => context.stream.metadata.namespace(namespace).as_ref().map(struct_to_json),
        keys => context.stream.metadata.get(namespace, keys).map(|v| to_json(&v)),
    }
}

/// Appends a value of JSON: texts as they are.
pub(super) fn value(out: &mut Vec<u8>, found: Option<serde_json::Value>) -> bool {
    match found {
        None => false,
        Some(serde_json::Value::String(s)) => text(out, Some(&s)),
        Some(other) => show(out, other),
    }
}
