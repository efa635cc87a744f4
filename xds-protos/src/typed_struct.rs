//! `TypedStruct`: a message sent as the name of its type and a `Struct`, by servers that do not have its code.

use std::borrow::Cow;

use prost::{Message, Name};
use serde_json::Value;

use crate::{Any, json, json::JsonError, udpa, value::from_json, xds};

/// The message in `any` itself when `any` holds a `TypedStruct` (of `udpa.type.v1` or `xds.type.v3`) of a type that we
/// know; anything else as it is.
///
/// # Errors
/// [`JsonError`] when the struct is not the message that it claims to be.
pub fn resolve(any: &Any) -> Result<Cow<'_, Any>, JsonError> {
    let Some((type_url, value)) = contents(any)? else { return Ok(Cow::Borrowed(any)) };
    let name = crate::type_url::name(&type_url);
    if crate::pool().get_message_by_name(name).is_none() {
        return Ok(Cow::Borrowed(any));
    }
    let value = json::encode(name, &value)?;
    Ok(Cow::Owned(Any { type_url, value }))
}

/// The type URL and JSON value of a `TypedStruct`; none if `any` is something else.
///
/// # Errors
/// [`JsonError`] when the bytes do not decode.
pub fn contents(any: &Any) -> Result<Option<(String, Value)>, JsonError> {
    let broken = |e: crate::UnpackError| JsonError { path: String::new(), message: e.to_string() };
    let (type_url, value) = if any.is::<udpa::r#type::v1::TypedStruct>() {
        let typed: udpa::r#type::v1::TypedStruct = any.unpack().map_err(broken)?;
        (typed.type_url, typed.value)
    } else if any.is::<xds::r#type::v3::TypedStruct>() {
        let typed: xds::r#type::v3::TypedStruct = any.unpack().map_err(broken)?;
        (typed.type_url, typed.value)
    } else {
        return Ok(None);
    };
    let value = value.unwrap_or_default().encode_to_vec();
    Ok(Some((type_url, json::bytes_to_value("google.protobuf.Struct", &value))))
}

/// A message as a `TypedStruct` of `udpa.type.v1`, the form in which istiod sends Istio's own configurations: a proxy that
/// does not have the type can still tell what it is.
pub fn wrap<T: Message + Name>(message: &T) -> Any {
    let value = match json::to_value(message) {
        Value::Object(fields) => fields.into_iter().map(|(key, value)| (key, from_json(value))).collect(),
        // A message with a form of its own is not an extension's configuration.
        _ => Default::default(),
    };
    let value = Some(prost_types::Struct { fields: value });
    Any::pack(&udpa::r#type::v1::TypedStruct { type_url: crate::type_url::of::<T>(), value })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{envoy::tcp::metadataexchange::config::MetadataExchange, udpa::r#type::v1::TypedStruct};

    fn typed(type_url: &str, value: Value) -> Any {
        let value = json!({"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": type_url, "value": value});
        json::from_value(value).unwrap()
    }

    #[test]
    fn a_struct_of_a_known_type_becomes_that_type() {
        let any = typed(
            "type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange",
            json!({"protocol": "istio-peer-exchange", "enable_discovery": true}),
        );
        assert!(any.is::<TypedStruct>());
        let message: MetadataExchange = resolve(&any).unwrap().unpack().unwrap();
        assert_eq!((message.protocol.as_str(), message.enable_discovery), ("istio-peer-exchange", true));
    }

    #[test]
    fn what_is_wrapped_resolves_to_itself() {
        use crate::io::istio::http::peer_metadata::{Config, config};
        let headers = config::IstioHeaders { skip_external_clusters: true };
        let config = Config {
            upstream_propagation: vec![config::PropagationMethod {
                method_specifier: Some(config::propagation_method::MethodSpecifier::IstioHeaders(headers)),
            }],
            additional_labels: vec!["role".into()],
            ..Default::default()
        };
        let wrapped = wrap(&config);
        assert!(wrapped.is::<TypedStruct>());
        assert_eq!(resolve(&wrapped).unwrap().unpack::<Config>().unwrap(), config);
    }

    #[test]
    fn one_of_an_unknown_type_stays_and_a_wrong_one_is_an_error() {
        let any = typed("type.googleapis.com/nobody.Knows", json!({"a": 1}));
        assert_eq!(*resolve(&any).unwrap(), any);
        let any = typed("type.googleapis.com/stats.PluginConfig", json!({"metriks": []}));
        assert_eq!(resolve(&any).unwrap_err().path, "metriks");
    }
}
