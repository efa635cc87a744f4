//! A probe by gRPC's health protocol, in plain text, as kubelet makes it.

use ::http::{HeaderValue, StatusCode};
use anyhow::{Context, bail};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Endpoint, Uri};

use super::dial::Target;
use super::{Outcome, up};

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The value of `ServingStatus` that counts as good, and the names of all.
const SERVING: i32 = 1;
const NAMES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

pub(super) async fn probe(
    target: &Target,
    service: &str,
    agent: Option<&HeaderValue>,
) -> anyhow::Result<Outcome> {
    let uri: Uri = format!("http://{}:{}", target.host, target.address.port()).parse()?;
    let mut endpoint = Endpoint::from(uri);
    if let Some(agent) = agent {
        endpoint = endpoint.user_agent(agent.clone())?;
    }
    let target = target.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let target = target.clone();
        async move {
            let stream = target.connect().await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    let channel = endpoint.connect_with_connector(connector).await;
    let channel = channel.map_err(|e| anyhow::anyhow!("{}", crate::xds::causes(&e)))?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<Question, Answer>::default();
    let request = tonic::Request::new(Question { service: service.to_owned() });
    let answer: tonic::Response<Answer> = match client.unary(request, path, codec).await {
        Ok(answer) => answer,
        Err(status) if status.code() == tonic::Code::Unimplemented => {
            bail!("the application does not speak gRPC's health protocol (grpc.health.v1.Health)")
        }
        Err(status) => bail!("gRPC status {:?}: {}", status.code(), status.message()),
    };
    match answer.into_inner().status {
        SERVING => Ok(up()),
        other => {
            let name = usize::try_from(other).ok().and_then(|n| NAMES.get(n)).context("an unknown status")?;
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            Ok(Outcome { status, body: format!("the service {service:?} is {name}\n").into_bytes() })
        }
    }
}
