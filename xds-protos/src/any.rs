//! `google.protobuf.Any` that shares its bytes with the message it came in.

use bytes::Bytes;
use prost::{DecodeError, Message, Name};

/// Any message, with the name of its type. Decoding one from [`Bytes`] copies nothing.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Any {
    /// `type.googleapis.com/` and the full name of the message.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The message, encoded.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

impl Name for Any {
    const NAME: &'static str = "Any";
    const PACKAGE: &'static str = "google.protobuf";
}

/// Why an [`Any`] is not the message that was asked for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UnpackError {
    /// It holds another type.
    #[error("expected a {expected}, found type URL {found:?}")]
    Type {
        /// Full name of the message asked for.
        expected: String,
        /// The type URL that was there.
        found: String,
    },
    /// The bytes are not that message.
    #[error("not a valid {type_name}: {source}")]
    Decode {
        /// Full name of the message.
        type_name: String,
        /// What the decoder said.
        source: DecodeError,
    },
}

impl Any {
    /// Encodes `message` under its own type URL.
    pub fn pack<T: Message + Name>(message: &T) -> Self {
        Self { type_url: crate::type_url::of::<T>(), value: message.encode_to_vec().into() }
    }

    /// The full name of the message inside: what follows the last slash of the type URL.
    pub fn type_name(&self) -> &str {
        crate::type_url::name(&self.type_url)
    }

    /// Whether this holds a `T`.
    pub fn is<T: Name>(&self) -> bool {
        name_is::<T>(self.type_name())
    }

    /// Decodes the message, if its type is `T`.
    ///
    /// # Errors
    /// [`UnpackError`]: another type, or bytes that do not decode.
    pub fn unpack<T: Message + Name + Default>(&self) -> Result<T, UnpackError> {
        if !self.is::<T>() {
            return Err(UnpackError::Type { expected: T::full_name(), found: self.type_url.clone() });
        }
        T::decode(self.value.clone())
            .map_err(|source| UnpackError::Decode { type_name: T::full_name(), source })
    }
}

/// `name == T::full_name()`, without building the string.
fn name_is<T: Name>(name: &str) -> bool {
    name.strip_suffix(T::NAME)
        .and_then(|rest| if T::PACKAGE.is_empty() { Some(rest) } else { rest.strip_suffix('.') })
        .map_or_else(|| name == T::full_name(), |package| package == T::PACKAGE || name == T::full_name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::config::{
        core::v3::{Address, SocketAddress},
        listener::v3::Listener,
    };

    #[test]
    fn a_packed_message_comes_back_and_no_other_type_does() {
        let listener = Listener { name: "inbound".into(), ..Default::default() };
        let any = Any::pack(&listener);
        assert_eq!(any.type_url, "type.googleapis.com/envoy.config.listener.v3.Listener");
        assert_eq!(any.unpack::<Listener>().unwrap(), listener);
        let error = any.unpack::<Address>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "expected a envoy.config.core.v3.Address, found type URL \
             \"type.googleapis.com/envoy.config.listener.v3.Listener\""
        );
        let torn = Any { value: Bytes::from_static(&[0x0a, 0x7f]), ..any };
        assert!(matches!(torn.unpack::<Listener>(), Err(UnpackError::Decode { .. })));
    }

    #[test]
    fn nested_messages_are_recognised_by_their_whole_name() {
        use crate::io::istio::http::peer_metadata::config::IstioHeaders;
        let any = Any::pack(&IstioHeaders::default());
        assert_eq!(any.type_name(), "io.istio.http.peer_metadata.Config.IstioHeaders");
        assert!(any.is::<IstioHeaders>() && !any.is::<SocketAddress>());
    }

    #[test]
    fn decoding_shares_the_buffer() {
        let outer = Any::pack(&Any { type_url: "x/y".into(), value: Bytes::from(vec![7; 1000]) });
        let inner: Any = outer.unpack().unwrap();
        let (whole, part) = (outer.value.as_ptr_range(), inner.value.as_ptr_range());
        assert!(whole.start < part.start && part.end <= whole.end);
    }
}
