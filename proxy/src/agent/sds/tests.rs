//! The service on a socket, as Envoy would use it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Code, Streaming};
use xds_protos::envoy::config::core::v3::data_source::Specifier;
use xds_protos::envoy::extensions::transport_sockets::tls::v3::{Secret, secret::Type};
use xds_protos::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse};
use xds_protos::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use xds_protos::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;
use xds_protos::type_url;

use super::SecretService;
use crate::agent::socket;
use crate::agent::stats::{Counter, Stats};
use crate::identity::workload::WorkloadCertificate;
use crate::identity::workload::testing::{Authority, id, start};
use crate::xds::{Address, Endpoint};

type Published = watch::Sender<Option<Arc<WorkloadCertificate>>>;
type Client = SecretDiscoveryServiceClient<tonic::transport::Channel>;

const HOUR: Duration = Duration::from_secs(3600);

/// An agent's socket in `directory`, a client of it, and where certificates come from.
async fn agent(directory: &Path) -> (Client, Published, Stats) {
    let (published, current) = watch::channel(None);
    let stats = Stats::default();
    let path = directory.join("socket");
    let (listener, file) = socket::listen(&path, "--sds-socket").unwrap();
    std::mem::forget(file);
    let service = SecretDiscoveryServiceServer::new(SecretService::new(current, stats.clone()));
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(UnixListenerStream::new(listener)),
    );
    let endpoint = Endpoint { address: Address::Unix(path), tls: None };
    (Client::new(endpoint.connect().await.unwrap()), published, stats)
}

struct Stream {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Stream {
    async fn open(client: &mut Client, names: &[&str]) -> Self {
        let (requests, outgoing) = mpsc::channel(4);
        requests.send(request("", names)).await.unwrap();
        let responses = client.stream_secrets(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        Self { requests, responses }
    }

    async fn next(&mut self) -> Result<DiscoveryResponse, tonic::Status> {
        let next = tokio::time::timeout(Duration::from_secs(10), self.responses.message());
        Ok(next.await.expect("no answer in time")?.expect("the stream ended"))
    }

    async fn send(&self, request: DiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }
}

fn request(nonce: &str, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: type_url::SECRET.to_owned(),
        resource_names: names.iter().map(|n| (*n).to_owned()).collect(),
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    }
}

/// Name and inline PEM texts of each secret.
fn secrets(response: &DiscoveryResponse) -> Vec<(String, Vec<String>)> {
    assert_eq!(response.type_url, type_url::SECRET);
    let one = |any: &xds_protos::Any| {
        let secret: Secret = any.unpack().unwrap();
        let sources = match secret.r#type.unwrap() {
            Type::TlsCertificate(c) => vec![c.certificate_chain, c.private_key],
            Type::ValidationContext(v) => vec![v.trusted_ca],
            other => panic!("{other:?}"),
        };
        let text = |s: Option<xds_protos::envoy::config::core::v3::DataSource>| match s.unwrap().specifier {
            Some(Specifier::InlineBytes(b)) => String::from_utf8(b.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        };
        (secret.name, sources.into_iter().map(text).collect())
    };
    response.resources.iter().map(one).collect()
}

fn of(certificate: &WorkloadCertificate) -> (String, Vec<String>) {
    ("default".to_owned(), vec![certificate.chain_pem(), certificate.key_pem().to_string()])
}

#[tokio::test]
async fn secrets_follow_when_they_are_there_and_again_at_each_rotation() {
    let directory = tempfile::tempdir().unwrap();
    let (mut client, published, stats) = agent(directory.path()).await;
    let authority = Authority::new();
    let names = ["ROOTCA", "default"];
    let (requests, outgoing) = mpsc::channel(4);
    requests.send(request("", &names)).await.unwrap();
    let first = Arc::new(authority.certificate(&id(), start(), HOUR));
    let publish = async {
        // The stream is open and asked for what is not there yet.
        while stats.get(Counter::SdsStreams) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        published.send_replace(Some(first.clone()));
    };
    let (opened, ()) = tokio::join!(client.stream_secrets(ReceiverStream::new(outgoing)), publish);
    let mut stream = Stream { requests, responses: opened.unwrap().into_inner() };
    let answer = stream.next().await.unwrap();
    let roots = ("ROOTCA".to_owned(), vec![authority.root_pem()]);
    assert_eq!(secrets(&answer), [roots, of(&first)]);
    stream.send(request(&answer.nonce, &names)).await;

    // The roots stay the same, so that only the certificate is sent.
    let second = Arc::new(authority.certificate(&id(), start(), HOUR));
    published.send_replace(Some(second.clone()));
    let push = stream.next().await.unwrap();
    assert_eq!(secrets(&push), [of(&second)]);
    assert_ne!(push.version_info, answer.version_info);

    // A refusal is counted and gets no answer; a late word about the first answer gets none either.
    let mut nack = request(&push.nonce, &names);
    nack.error_detail =
        Some(xds_protos::google::rpc::Status { message: "bad key".into(), ..Default::default() });
    stream.send(nack).await;
    stream.send(request(&answer.nonce, &["default"])).await;
    // Withdrawn at its expiry: the proxy keeps what it has.
    published.send_replace(None);
    let third = Arc::new(authority.certificate(&id(), start(), HOUR));
    published.send_replace(Some(third.clone()));
    let push = stream.next().await.unwrap();
    assert_eq!(secrets(&push), [of(&third)]);
    assert_eq!(stats.get(Counter::SdsRejections), 1);

    // Given up, a name is pushed no more.
    stream.send(request(&push.nonce, &["ROOTCA"])).await;
    stream.send(request(&push.nonce, &["ROOTCA", "default"])).await;
    assert_eq!(secrets(&stream.next().await.unwrap()), [of(&third)]);
}

#[tokio::test]
async fn what_is_not_served_is_refused_with_what_is() {
    let directory = tempfile::tempdir().unwrap();
    let (mut client, _published, _) = agent(directory.path()).await;
    let mut stream = Stream::open(&mut client, &["kubernetes://shop/cert"]).await;
    let status = stream.next().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("kubernetes://shop/cert") && status.message().contains("ROOTCA"));

    let mut stream = Stream::open(&mut client, &["file-root:/nonexistent.pem"]).await;
    let status = stream.next().await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("/nonexistent.pem cannot be read"), "{status}");

    let status = client.fetch_secrets(request("", &["default"])).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    let delta = tokio_stream::iter([DeltaDiscoveryRequest::default()]);
    let status = client.delta_secrets(delta).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("StreamSecrets"), "{status}");
}

#[tokio::test]
async fn files_are_served_checked_and_followed() {
    let directory = tempfile::tempdir().unwrap();
    let (mut client, _published, _) = agent(directory.path()).await;
    let authority = Authority::new();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (chain, key, root) = (at("chain.pem"), at("key.pem"), at("root.pem"));
    let put = |certificate: &WorkloadCertificate| {
        std::fs::write(&key, &*certificate.key_pem()).unwrap();
        std::fs::write(&chain, certificate.chain_pem()).unwrap();
    };
    let [first, second] = [(); 2].map(|()| authority.certificate(&id(), start(), HOUR));
    put(&first);
    std::fs::write(&root, authority.root_pem()).unwrap();
    let pair = format!("file-cert:{chain}~{key}");
    let roots = format!("file-root:{root}");
    let mut stream = Stream::open(&mut client, &[&pair, &roots]).await;
    let served = |c: &WorkloadCertificate| (pair.clone(), vec![c.chain_pem(), c.key_pem().to_string()]);
    assert_eq!(
        secrets(&stream.next().await.unwrap()),
        [served(&first), (roots.clone(), vec![authority.root_pem()])]
    );

    // A key without its chain is never sent; once both are there, they are.
    std::fs::write(&key, &*second.key_pem()).unwrap();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    put(&second);
    assert_eq!(secrets(&stream.next().await.unwrap()), [served(&second)]);
}
