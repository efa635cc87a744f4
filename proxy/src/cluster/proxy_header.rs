//! `envoy.transport_sockets.upstream_proxy_protocol`: what an upstream connection says first of the client that it is for.

use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::extensions::transport_sockets::proxy_protocol::v3 as pb;

use crate::io::Origin;
use crate::io::proxy_header::{Tlv, Version, encode_local, encode_v1, encode_v2};
use crate::state::ConfigError;

/// The compiled socket, without the one it wraps.
#[derive(Debug)]
pub struct ProxyHeaderWriter {
    version: Version,
    pass: Pass,
    added: Vec<Tlv>,
}

/// Which values of the downstream's header go on.
#[derive(Debug)]
enum Pass {
    None,
    All,
    Of(Vec<u32>),
}

impl ProxyHeaderWriter {
    /// Compiles the message.
    pub fn compile(proto: &pb::ProxyProtocolUpstreamTransport) -> Result<Self, ConfigError> {
        use core::proxy_protocol_config::Version as Said;
        use core::proxy_protocol_pass_through_tl_vs::PassTlVsMatchType as Match;
        let config = proto.config.clone().unwrap_or_default();
        let pass = match &config.pass_through_tlvs {
            None => Pass::None,
            Some(pass) if pass.match_type() == Match::IncludeAll => Pass::All,
            Some(pass) => Pass::Of(pass.tlv_type.clone()),
        };
        let mut added = Vec::new();
        for (i, tlv) in config.added_tlvs.iter().enumerate() {
            let wrong = |_| ConfigError::new(format!("config.added_tlvs[{i}].type"), "must be below 256");
            added.push(Tlv { kind: u8::try_from(tlv.r#type).map_err(wrong)?, value: tlv.value[..].into() });
        }
        let version = match config.version() {
            Said::V1 => Version::V1,
            Said::V2 => Version::V2,
        };
        Ok(Self { version, pass, added })
    }

    /// The header for a downstream's connection, or for one of our own.
    pub fn header(&self, origin: Option<&Origin>) -> Vec<u8> {
        let Some((origin, (source, destination))) = origin.and_then(|o| Some((o, o.addresses?))) else {
            return match self.version {
                Version::V1 => b"PROXY UNKNOWN\r\n".to_vec(),
                Version::V2 => encode_local(),
            };
        };
        match self.version {
            Version::V1 => encode_v1(source, destination),
            Version::V2 => {
                let passes = |tlv: &&Tlv| match &self.pass {
                    Pass::None => false,
                    Pass::All => true,
                    Pass::Of(kinds) => kinds.contains(&u32::from(tlv.kind)),
                };
                // One that is added stands for one of its kind that came.
                let added = |tlv: &&Tlv| self.added.iter().any(|a| a.kind == tlv.kind);
                let passed = origin.passed_on.tlvs.iter().filter(passes).filter(|t| !added(t));
                encode_v2(source, destination, self.added.iter().chain(passed))
            }
        }
    }
}
