//! The rows: which paths are measured, and the committed configurations that make them.

use crate::backend;
use crate::exchange::Exchange;

/// What the load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Request by request.
    Exchanges(Exchange),
    /// Bytes without end towards the client.
    Bulk,
}

/// A path.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name on the command line and in the JSON.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// The load.
    pub work: Work,
    /// Two hops within the one process.
    pub pair: bool,
    /// Connections of the load.
    pub connections: usize,
    /// Requests per second; none for as many as go.
    pub rate: Option<u32>,
    /// For Weft and Envoy, which read the same file.
    pub envoy: &'static str,
    /// The same path with nothing observed, where the row is about what observing costs: Weft and Envoy go by it once more.
    pub bare: Option<&'static str>,
    /// For nginx, where it can.
    pub nginx: Option<&'static str>,
    /// For haproxy, where it can.
    pub haproxy: Option<&'static str>,
}

macro_rules! config {
    ($file:literal) => {
        include_str!(concat!("../configs/", $file))
    };
}

/// All rows.
pub const ROWS: &[Row] = &[
    Row {
        name: "http1",
        what: "HTTP/1.1 plaintext, one hop",
        work: Work::Exchanges(Exchange::Http),
        pair: false,
        connections: 32,
        rate: None,
        envoy: config!("http1.envoy.yaml"),
        bare: None,
        nginx: Some(config!("http1.nginx.conf")),
        haproxy: Some(config!("http1.haproxy.cfg")),
    },
    Row {
        name: "http1-slow",
        what: "the same at 1,000 requests a second: what most proxies do all day",
        work: Work::Exchanges(Exchange::Http),
        pair: false,
        connections: 32,
        rate: Some(1000),
        envoy: config!("http1.envoy.yaml"),
        bare: None,
        nginx: Some(config!("http1.nginx.conf")),
        haproxy: Some(config!("http1.haproxy.cfg")),
    },
    Row {
        name: "mtls-http1",
        what: "HTTP/1.1 over mutual TLS, two hops in one process",
        work: Work::Exchanges(Exchange::Http),
        pair: true,
        connections: 32,
        rate: None,
        envoy: config!("mtls-http1.envoy.yaml"),
        bare: None,
        nginx: Some(config!("mtls-http1.nginx.conf")),
        haproxy: Some(config!("mtls-http1.haproxy.cfg")),
    },
    Row {
        name: "mesh-http1",
        what: "the same, with an access log (Istio's format) written on both hops",
        work: Work::Exchanges(Exchange::Http),
        pair: true,
        connections: 32,
        rate: None,
        envoy: config!("mesh-http1.envoy.yaml"),
        bare: None,
        nginx: Some(config!("mesh-http1.nginx.conf")),
        haproxy: Some(config!("mesh-http1.haproxy.cfg")),
    },
    Row {
        name: "observed-http1",
        what: "the same with everything observed: access log, Istio's metrics (Weft) and 1% of traces, against nothing of it",
        work: Work::Exchanges(Exchange::Http),
        pair: true,
        connections: 32,
        rate: None,
        envoy: config!("observed-http1.envoy.yaml"),
        bare: Some(config!("mtls-http1.envoy.yaml")),
        nginx: None,
        haproxy: None,
    },
    Row {
        name: "mtls-http2",
        what: "HTTP/1.1 from the client, HTTP/2 over mutual TLS between the two hops, 32 streams at once",
        work: Work::Exchanges(Exchange::Http),
        pair: true,
        connections: 32,
        rate: None,
        envoy: config!("mtls-http2.envoy.yaml"),
        bare: None,
        // nginx has no HTTP/2 towards upstreams.
        nginx: None,
        haproxy: Some(config!("mtls-http2.haproxy.cfg")),
    },
    Row {
        name: "policies-http1",
        what: "HTTP/1.1 over mutual TLS, two hops; the second verifies a token (RS256) and asks 100 policies",
        work: Work::Exchanges(Exchange::Authorized),
        pair: true,
        connections: 32,
        rate: None,
        envoy: config!("policies-http1.envoy.yaml"),
        bare: None,
        nginx: None,
        haproxy: None,
    },
    Row {
        name: "handshakes",
        what: "the same without them, each request over a TLS connection of its own between the hops, whole handshakes",
        work: Work::Exchanges(Exchange::Http),
        pair: true,
        connections: 32,
        rate: None,
        envoy: config!("handshakes.envoy.yaml"),
        bare: None,
        nginx: None,
        haproxy: None,
    },
    Row {
        name: "handshakes-resumed",
        what: "the same, resumed handshakes",
        work: Work::Exchanges(Exchange::Http),
        pair: true,
        connections: 32,
        rate: None,
        envoy: config!("handshakes-resumed.envoy.yaml"),
        bare: None,
        nginx: None,
        haproxy: None,
    },
    Row {
        name: "tcp",
        what: "TCP ping-pong of 100 bytes, one hop",
        work: Work::Exchanges(Exchange::Ping),
        pair: false,
        connections: 32,
        rate: None,
        envoy: config!("tcp.envoy.yaml"),
        bare: None,
        nginx: Some(config!("tcp.nginx.conf")),
        haproxy: Some(config!("tcp.haproxy.cfg")),
    },
    Row {
        name: "mtls-tcp",
        what: "TCP ping-pong of 100 bytes over mutual TLS, two hops in one process",
        work: Work::Exchanges(Exchange::Ping),
        pair: true,
        connections: 32,
        rate: None,
        envoy: config!("mtls-tcp.envoy.yaml"),
        bare: None,
        nginx: Some(config!("mtls-tcp.nginx.conf")),
        haproxy: Some(config!("mtls-tcp.haproxy.cfg")),
    },
    Row {
        name: "tcp-bulk",
        what: "TCP bulk towards the client, one hop, four connections",
        work: Work::Bulk,
        pair: false,
        connections: 4,
        rate: None,
        envoy: config!("tcp.envoy.yaml"),
        bare: None,
        nginx: Some(config!("tcp.nginx.conf")),
        haproxy: Some(config!("tcp.haproxy.cfg")),
    },
    Row {
        name: "mtls-tcp-bulk",
        what: "the same over mutual TLS, two hops in one process",
        work: Work::Bulk,
        pair: true,
        connections: 4,
        rate: None,
        envoy: config!("mtls-tcp.envoy.yaml"),
        bare: None,
        nginx: Some(config!("mtls-tcp.nginx.conf")),
        haproxy: Some(config!("mtls-tcp.haproxy.cfg")),
    },
];

impl Row {
    /// What is counted.
    pub fn unit(&self) -> &'static str {
        match self.work {
            Work::Exchanges(Exchange::Http | Exchange::Authorized) => "request",
            Work::Exchanges(Exchange::Ping) => "round trip",
            Work::Bulk => "MiB",
        }
    }

    /// The backend that it needs.
    pub fn backend(&self) -> backend::Kind {
        match self.work {
            Work::Exchanges(Exchange::Http | Exchange::Authorized) => backend::Kind::Http,
            Work::Exchanges(Exchange::Ping) => backend::Kind::Echo,
            Work::Bulk => backend::Kind::Bulk,
        }
    }
}
