//! What is counted of gRPC, by both proxies of a hop, beside what a client and a server of it have counted themselves: messages
//! however they are cut, bytes, and how long calls took.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};

use crate::support::eventually;
use crate::support::http::get;
use crate::support::mesh::{alone, runtime};
use crate::support::pair::{Pair, workload};

/// A call: how many messages go there and come back, how long each is, and how many bytes of them are in a frame.
#[derive(Clone, Copy, Debug)]
struct Call {
    there: usize,
    back: usize,
    length: usize,
    frame: usize,
    /// The messages say that they are compressed.
    compressed: bool,
    delay: Duration,
}

impl Call {
    const fn new(there: usize, back: usize, length: usize, frame: usize) -> Self {
        Self { there, back, length, frame, compressed: false, delay: Duration::ZERO }
    }

    /// So many messages, one behind the other.
    fn messages(self, count: usize) -> Bytes {
        let mut bytes = BytesMut::new();
        for _ in 0..count {
            bytes.put_u8(u8::from(self.compressed));
            bytes.put_u32(u32::try_from(self.length).unwrap());
            bytes.put_bytes(7, self.length);
        }
        bytes.freeze()
    }

    fn fields(self) -> [(&'static str, usize); 5] {
        let delay = self.delay.as_millis() as usize;
        [
            ("x-back", self.back),
            ("x-length", self.length),
            ("x-frame", self.frame),
            ("x-compressed", self.compressed.into()),
            ("x-delay", delay),
        ]
    }

    fn of_fields(headers: &HeaderMap) -> Self {
        let number = |name: &str| headers[name].to_str().unwrap().parse::<usize>().unwrap();
        Self {
            there: 0,
            back: number("x-back"),
            length: number("x-length"),
            frame: number("x-frame"),
            compressed: number("x-compressed") == 1,
            delay: Duration::from_millis(number("x-delay") as u64),
        }
    }
}

/// Sends these bytes in frames of this size, as far as the other side takes them.
async fn send(stream: &mut h2::SendStream<Bytes>, mut bytes: Bytes, frame: usize) {
    while !bytes.is_empty() {
        stream.reserve_capacity(frame.min(bytes.len()));
        while stream.capacity() == 0 {
            std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
        }
        let size = frame.min(bytes.len()).min(stream.capacity());
        stream.send_data(bytes.split_to(size), false).unwrap();
    }
}

async fn read(stream: &mut h2::RecvStream) -> usize {
    let mut length = 0;
    while let Some(data) = stream.data().await {
        let data = data.unwrap();
        let _ = stream.flow_control().release_capacity(data.len());
        length += data.len();
    }
    length
}

/// A server that answers each call as its fields ask for.
async fn serve(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                tokio::spawn(async move {
                    let call = Call::of_fields(request.headers());
                    read(&mut request.into_body()).await;
                    tokio::time::sleep(call.delay).await;
                    let head =
                        Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                    let mut stream = respond.send_response(head, false).unwrap();
                    send(&mut stream, call.messages(call.back), call.frame).await;
                    let trailers = [("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))];
                    stream.send_trailers(HeaderMap::from_iter(trailers)).unwrap();
                });
            }
        });
    }
}

/// Makes a call through this proxy; how many bytes came, and how long it took.
async fn call(client: h2::client::SendRequest<Bytes>, call: Call) -> (usize, Duration) {
    let began = Instant::now();
    let mut client = client.ready().await.unwrap();
    let mut request = Request::post("http://calls:8080/test.Calls/Make")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in call.fields() {
        request = request.header(name, value);
    }
    let (answer, mut stream) = client.send_request(request.body(()).unwrap(), false).unwrap();
    send(&mut stream, call.messages(call.there), call.frame).await;
    stream.send_data(Bytes::new(), true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200, "{answer:?}");
    let mut body = answer.into_body();
    let length = read(&mut body).await;
    assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
    (length, began.elapsed())
}

/// The sums of metrics of one reporter.
fn sums(admin: SocketAddr, reporter: &str) -> BTreeMap<String, f64> {
    let text = get(admin, "/stats/prometheus").unwrap().1;
    let mut all = BTreeMap::new();
    for line in text.lines().filter(|line| line.contains(&format!("reporter=\"{reporter}\""))) {
        let (Some((name, labels)), Some((_, value))) = (line.split_once('{'), line.rsplit_once(' ')) else {
            continue;
        };
        assert!(!name.ends_with("messages_total") || labels.contains("request_protocol=\"grpc\""), "{line}");
        *all.entry(name.to_owned()).or_default() += value.parse::<f64>().unwrap_or(0.0);
    }
    all
}

#[test]
fn messages_bytes_and_durations_of_calls_are_those_that_their_client_counts() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = Pair::new(106);
        // Its application is this test.
        let calls = workload("calls", 12, "none").replace("  annotations:\n    weft.dev/command: none\n", "");
        let calls =
            calls.replace("{name: http, port", "{name: grpc, port").replace("{http: 8080}", "{grpc: 8080}");
        pair.write("calls.yaml", &calls);
        pair.write(
            "sidecar.yaml",
            "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: calls, namespace: pair}
spec:
  workloadSelector: {labels: {app: calls}}
  ingress:
    - {port: {number: 8080, protocol: GRPC, name: grpc}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}
  egress:
    - {captureMode: NONE, hosts: ['pair/*']}
",
        );
        let mesh = pair.start().await;
        let (front, back) = (mesh.workload("front-1").unwrap(), mesh.workload("calls-1").unwrap());
        tokio::spawn(serve(TcpListener::bind((back.address, 18080)).await.unwrap()));
        let stream = TcpStream::connect(front.http_proxy.unwrap()).await.unwrap();
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);

        let many = [
            // One of each; many in one frame; heads and messages cut anywhere; one that fills windows; empty ones; none.
            Call::new(1, 1, 10, 16_384),
            Call::new(40, 30, 10, 16_384),
            Call::new(2, 3, 4, 1),
            Call::new(5, 3, 11, 3),
            Call::new(1, 2, 200_000, 16_384),
            Call::new(6, 8, 0, 7),
            Call::new(2, 0, 5, 5),
            Call { compressed: true, ..Call::new(3, 4, 30, 33) },
        ];
        let (mut sent, mut received) = ((0, 0), (0, 0));
        for one in many {
            let (length, _) = call(client.clone(), one).await;
            assert_eq!(length, one.messages(one.back).len(), "{one:?}");
            sent = (sent.0 + one.there, sent.1 + one.messages(one.there).len());
            received = (received.0 + one.back, received.1 + length);
        }
        let wanted = |sums: &BTreeMap<String, f64>| {
            [
                "istio_request_messages_total",
                "istio_response_messages_total",
                "istio_request_bytes_sum",
                "istio_response_bytes_sum",
                "istio_requests_total",
            ]
            .map(|name| sums.get(name).copied().unwrap_or(0.0))
        };
        let counted = [sent.0, received.0, sent.1, received.1, many.len()].map(|n| n as f64);
        for (admin, reporter) in [(front.admin(), "source"), (back.admin(), "destination")] {
            // A call is counted when it has ended, which its client may know a moment earlier.
            eventually("all calls are counted", || wanted(&sums(admin, reporter))[4] == counted[4]);
            assert_eq!(wanted(&sums(admin, reporter)), counted, "{reporter}");
        }

        // Calls that take a second each, all at once: what the machine adds is little beside it.
        let before: Vec<_> = [(front.admin(), "source"), (back.admin(), "destination")]
            .into_iter()
            .map(|(admin, reporter)| (admin, reporter, sums(admin, reporter)))
            .collect();
        let slow = Call { delay: Duration::from_secs(1), ..Call::new(1, 1, 10, 1000) };
        let all: Vec<_> = (0..8).map(|_| tokio::spawn(call(client.clone(), slow))).collect();
        let all_of = all.len() as f64;
        let mut measured = Duration::ZERO;
        for one in all {
            measured += one.await.unwrap().1;
        }
        let name = "istio_request_duration_milliseconds";
        for (admin, reporter, before) in before {
            let since = |what: &str| {
                let name = format!("{name}_{what}");
                sums(admin, reporter)[&name] - before[&name]
            };
            eventually("all calls are counted", || since("count") == 8.0);
            let (counted, measured) = (since("sum"), measured.as_secs_f64() * 1000.0);
            // Each proxy sees more of a call than its server, and less than its client. On a machine that is not busy these two are
            // nearly the same; on one that is, what lies between is not the proxy's.
            let waited = all_of * slow.delay.as_secs_f64() * 1000.0;
            let bounds = (waited * 0.999)..=(measured * 1.001);
            assert!(bounds.contains(&counted), "{reporter}: {counted} ms, and its client {measured} ms");
        }
        mesh.shutdown().await.unwrap();
    });
}
