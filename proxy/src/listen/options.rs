//! A listener's `socket_options`, compiled.

use xds_protos::envoy::config::core::v3 as pb;
use xds_protos::envoy::config::core::v3::socket_option::SocketState;

use crate::io::{Moment, SocketOption};
use crate::state::ConfigError;

/// Compiles a list of them.
pub fn compile(list: &[pb::SocketOption]) -> Result<Vec<SocketOption>, Vec<ConfigError>> {
    let compiled =
        list.iter().enumerate().map(|(i, option)| one(option).map_err(|e| vec![e.at(format!("[{i}]"))]));
    compiled.collect()
}

fn one(proto: &pb::SocketOption) -> Result<SocketOption, ConfigError> {
    use pb::socket_option::{SocketIpVersion, Value};
    let number = |n: i64, field: &'static str| {
        i32::try_from(n).map_err(|_| ConfigError::new(field, format!("{n} is no option of the system")))
    };
    let value = match &proto.value {
        Some(Value::IntValue(n)) => number(*n, "int_value")?.to_ne_bytes().to_vec(),
        Some(Value::BufValue(bytes)) => bytes.to_vec(),
        None => return Err(ConfigError::missing("value")),
    };
    let version = proto.ip_version();
    // An option for datagrams alone never meets a socket of ours.
    let stream = proto.r#type.as_ref().is_none_or(|t| t.stream.is_some() || t.datagram.is_none());
    let moment = match proto.state() {
        SocketState::StatePrebind => Moment::Prebind,
        SocketState::StateBound => Moment::Bound,
        SocketState::StateListening => Moment::Listening,
    };
    let (level, name) = (number(proto.level, "level")?, number(proto.name, "name")?);
    let v4 = stream && version != SocketIpVersion::Ipv6;
    let v6 = stream && version != SocketIpVersion::Ipv4;
    Ok(SocketOption::new(level, name, value, moment, v4, v6))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(value: serde_json::Value) -> Result<Vec<SocketOption>, Vec<ConfigError>> {
        super::compile(&[xds_protos::json::from_value(value).unwrap()])
    }

    #[test]
    fn an_option_is_set_at_its_moment_on_sockets_of_its_family() {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let level = i64::from(libc::SOL_SOCKET);
        let name = i64::from(libc::SO_KEEPALIVE);
        let json = |extra: serde_json::Value| {
            let mut all =
                serde_json::json!({"level": level, "name": name, "int_value": 1, "state": "STATE_BOUND"});
            all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            all
        };
        let six = compile(json(serde_json::json!({"ip_version": "SOCKET_IP_VERSION_IPV6"}))).unwrap();
        SocketOption::set_all(&six, Moment::Bound, true, &socket).unwrap();
        let datagram = compile(json(serde_json::json!({"type": {"datagram": {}}}))).unwrap();
        SocketOption::set_all(&datagram, Moment::Bound, true, &socket).unwrap();
        let options = compile(json(serde_json::json!({}))).unwrap();
        SocketOption::set_all(&options, Moment::Prebind, true, &socket).unwrap();
        assert!(!socket.keepalive().unwrap());
        SocketOption::set_all(&options, Moment::Bound, true, &socket).unwrap();
        assert!(socket.keepalive().unwrap());
    }

    #[test]
    fn what_the_system_does_not_know_is_an_error_with_the_options_numbers() {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let options = compile(serde_json::json!({"level": 1, "name": 9999, "int_value": 1})).unwrap();
        let error = SocketOption::set_all(&options, Moment::Prebind, true, &socket).unwrap_err();
        assert!(error.to_string().contains("socket option 9999 of level 1"), "{error}");
    }
}
