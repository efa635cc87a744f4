//! Envoy's `SocketOption`: an option of the system by its numbers, for whatever has no field of its own.

use std::os::fd::{AsFd, AsRawFd};

use xds_protos::envoy::config::core::v3 as pb;
use xds_protos::envoy::config::core::v3::socket_option::SocketState;

use crate::state::ConfigError;

/// When in a socket's life an option is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Moment {
    /// Before it is bound.
    Prebind,
    /// After it is bound.
    Bound,
    /// After it listens.
    Listening,
}

/// One option.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SocketOption {
    level: i32,
    name: i32,
    /// As `setsockopt` takes it.
    value: Vec<u8>,
    moment: Moment,
    /// Only for sockets of this family.
    v4: bool,
    v6: bool,
}

impl SocketOption {
    /// Compiles a list of them.
    pub fn compile_all(list: &[pb::SocketOption]) -> Result<Vec<Self>, Vec<ConfigError>> {
        let compiled = list
            .iter()
            .enumerate()
            .map(|(i, option)| Self::compile(option).map_err(|e| vec![e.at(format!("[{i}]"))]));
        compiled.collect()
    }

    fn compile(proto: &pb::SocketOption) -> Result<Self, ConfigError> {
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
        Ok(Self {
            level: number(proto.level, "level")?,
            name: number(proto.name, "name")?,
            value,
            moment: match proto.state() {
                SocketState::StatePrebind => Moment::Prebind,
                SocketState::StateBound => Moment::Bound,
                SocketState::StateListening => Moment::Listening,
            },
            v4: stream && version != SocketIpVersion::Ipv6,
            v6: stream && version != SocketIpVersion::Ipv4,
        })
    }

    /// Lets so many connections wait that came with data in their SYN (TCP_FASTOPEN).
    pub fn fast_open(length: u32) -> Self {
        Self::number(libc::IPPROTO_TCP, libc::TCP_FASTOPEN, length, Moment::Listening)
    }

    /// Leaves the choice of a port from binding to connecting (IP_BIND_ADDRESS_NO_PORT).
    pub fn bind_address_no_port() -> Self {
        Self::number(libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1, Moment::Prebind)
    }

    fn number(level: i32, name: i32, value: u32, moment: Moment) -> Self {
        Self { level, name, value: value.to_ne_bytes().to_vec(), moment, v4: true, v6: true }
    }

    /// Sets those of `options` whose moment it is on a socket of this family.
    pub fn set_all(options: &[Self], moment: Moment, ipv4: bool, socket: &impl AsFd) -> std::io::Result<()> {
        let fits = |o: &&Self| o.moment == moment && if ipv4 { o.v4 } else { o.v6 };
        options.iter().filter(fits).try_for_each(|o| o.set(socket))
    }

    /// Sets it, whatever its moment.
    #[allow(unsafe_code, reason = "no safe wrapper takes an option by its number")]
    pub fn set(&self, socket: &impl AsFd) -> std::io::Result<()> {
        let length = libc::socklen_t::try_from(self.value.len()).map_err(std::io::Error::other)?;
        // SAFETY: the descriptor is borrowed and so open; the pointer and the length are those of a living slice, from
        // which the kernel only reads.
        let result = unsafe {
            libc::setsockopt(
                socket.as_fd().as_raw_fd(),
                self.level,
                self.name,
                self.value.as_ptr().cast(),
                length,
            )
        };
        if result == 0 {
            return Ok(());
        }
        let error = std::io::Error::last_os_error();
        let (level, name) = (self.level, self.name);
        Err(std::io::Error::new(error.kind(), format!("socket option {name} of level {level}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(value: serde_json::Value) -> Result<Vec<SocketOption>, Vec<ConfigError>> {
        SocketOption::compile_all(&[xds_protos::json::from_value(value).unwrap()])
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
