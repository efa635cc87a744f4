//! Mutual TLS handshakes between our two sides, full and resumed, certificates verified on both; what is timed is both sides'
//! work together, on one thread, over memory.

use std::sync::Arc;
use std::time::SystemTime;

use criterion::Criterion;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_proxy::identity::tls::{ConnectOptions, DownstreamContext, TlsStats, UpstreamContext};
use weft_proxy::io::Io;
use weft_proxy::state::{CompileContext, NodeInfo, Tables};
use weft_proxy::telemetry::registry::Group;
use xds_protos::envoy::extensions::transport_sockets::tls::v3 as pb;

struct Pair {
    client: UpstreamContext,
    server: DownstreamContext,
    stats: TlsStats,
}

fn pair(group: &str, resumption: bool) -> Pair {
    let directory = tempfile::tempdir().unwrap();
    weft_benches::tls::write(directory.path()).unwrap();
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    let indented = |name: &str| read(name).lines().map(|l| format!("        {l}\n")).collect::<String>();
    let common = format!(
        "common_tls_context:\n  tls_params:\n    tls_minimum_protocol_version: TLSv1_3\n    \
         tls_maximum_protocol_version: TLSv1_3\n    ecdh_curves: [{group}]\n  tls_certificates:\n  - certificate_chain:\n      \
         inline_string: |\n{}    private_key:\n      inline_string: |\n{}  validation_context:\n    trusted_ca:\n      \
         inline_string: |\n{}    match_typed_subject_alt_names:\n    - san_type: URI\n      matcher: {{ exact: \"{}\" }}\n",
        indented("chain.pem"),
        indented("key.pem"),
        indented("root.pem"),
        weft_benches::tls::ID,
    );
    let session = if resumption { "" } else { "max_session_keys: 0\n" };
    let client: pb::UpstreamTlsContext =
        xds_protos::json::from_yaml_str(&format!("{session}sni: bench.local\n{common}")).unwrap();
    let server: pb::DownstreamTlsContext =
        xds_protos::json::from_yaml_str(&format!("require_client_certificate: true\n{common}")).unwrap();
    let context = CompileContext::new(&Tables::default(), Arc::new(NodeInfo::default()), SystemTime::now());
    Pair {
        client: UpstreamContext::compile(&client, &context).unwrap(),
        server: DownstreamContext::compile(&server, &context).unwrap(),
        stats: TlsStats::new(&Group::new("bench", Vec::new())),
    }
}

impl Pair {
    /// A handshake and a byte back, with which the ticket for the next one arrives; says whether it was resumed.
    async fn shake(&self) -> bool {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let connecting = self.client.connect(Io::memory(near), ConnectOptions::default(), &self.stats);
        let accepting = self.server.accept(Io::memory(far), &self.stats);
        let (connected, accepted) = tokio::join!(connecting, accepting);
        let ((mut client, info), (mut server, _)) = (connected.unwrap(), accepted.unwrap());
        server.write_all(b"x").await.unwrap();
        server.flush().await.unwrap();
        client.read_u8().await.unwrap();
        info.resumed
    }
}

pub fn benches(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut group = c.benchmark_group("handshake, both sides");
    for (name, curve, resumption) in [
        ("full, X25519", "X25519", false),
        ("full, X25519MLKEM768", "X25519MLKEM768", false),
        ("resumed, X25519", "X25519", true),
        ("resumed, X25519MLKEM768", "X25519MLKEM768", true),
    ] {
        let pair = pair(curve, resumption);
        runtime.block_on(pair.shake());
        assert_eq!(runtime.block_on(pair.shake()), resumption, "{name}");
        group.bench_function(name, |b| b.iter(|| runtime.block_on(pair.shake())));
    }
}
