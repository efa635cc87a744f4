use std::time::Instant;

use arc_swap::ArcSwapOption;
use hickory_proto::op::Message;

use super::super::resolver::Resolver;
use super::super::stats::Stats;
use super::super::testing::{Server, question, settings, table};
use super::super::upstream::{Times, Upstream};
use super::super::{Shared, TABLE_PATIENCE};
use super::*;

/// A pod's DNS at a port of its own, before these servers (itself, if none are given), begun so long ago.
fn start_before(servers: &[SocketAddr], ago: Duration) -> (Dns, SocketAddr, tokio::task::JoinHandle<()>) {
    let mut settings = settings();
    settings.listen = vec![("127.0.0.1:0".parse().unwrap(), Needed::Always)];
    let sockets = bind(&settings).unwrap();
    let address = sockets.addresses()[0];
    settings.servers = if servers.is_empty() { vec![address] } else { servers.to_vec() };
    let stats = Stats::new();
    let resolver =
        Resolver::new(Upstream::new(&settings.servers, Times::default(), stats.clone()), stats.clone());
    let started = Instant::now().checked_sub(ago).unwrap();
    let dns = Dns(Arc::new(Shared {
        settings,
        table: ArcSwapOption::empty(),
        taken: tokio::sync::watch::Sender::new(None),
        resolver,
        stats,
        started,
    }));
    let task = tokio::spawn(run(sockets, dns.clone()));
    (dns, address, task)
}

fn start(servers: &[SocketAddr]) -> (Dns, SocketAddr, tokio::task::JoinHandle<()>) {
    start_before(servers, Duration::ZERO)
}

async fn by_udp(at: SocketAddr, message: &Message) -> Message {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&message.to_vec().unwrap(), at).await.unwrap();
    let mut buffer = [0; 4096];
    let (size, _) = timeout(Duration::from_secs(10), socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    Message::from_vec(&buffer[..size]).unwrap()
}

fn ips(message: &Message) -> Vec<String> {
    message.answers.iter().map(|r| r.data.to_string()).collect()
}

#[tokio::test]
async fn before_the_first_table_nothing_is_denied_and_after_it_names_need_no_server() {
    let server = Server::start(|_, _, mut begun| {
        begun.metadata.response_code = ResponseCode::NXDomain;
        Some(begun)
    })
    .await;
    let (dns, at, _task) = start(&[server.address]);
    let users = question("users", RecordType::A);
    assert_eq!(by_udp(at, &users).await.metadata.response_code, ResponseCode::ServFail);
    assert!(!crate::admin::Dns::ready(&dns));
    dns.0.table.store(Some(Arc::new(table())));
    assert!(crate::admin::Dns::ready(&dns));
    assert_eq!(ips(&by_udp(at, &users).await), ["10.96.0.10"]);
    assert_eq!(server.asked(), 0);
    // A type that others may know; that the name is there is known here.
    let service = by_udp(at, &question("users", RecordType::SRV)).await;
    assert_eq!((service.metadata.response_code, service.answers.len()), (ResponseCode::NoError, 0));
    assert_eq!(
        by_udp(at, &question("else.example", RecordType::A)).await.metadata.response_code,
        ResponseCode::NXDomain
    );
    assert_eq!(server.asked(), 2);
    let page = crate::admin::Dns::page(&dns);
    assert_eq!(
        (&page["counters"]["local_total"], &page["names"][0]["host"]),
        (&1.into(), &"*.deep.wild.example".into())
    );
}

#[tokio::test]
async fn a_control_plane_that_has_no_table_leaves_names_to_the_servers() {
    let server = Server::with_address("192.0.2.1", 60).await;
    let (dns, at, _task) = start_before(&[server.address], TABLE_PATIENCE);
    assert!(crate::admin::Dns::ready(&dns));
    assert_eq!(ips(&by_udp(at, &question("a.example", RecordType::A)).await), ["192.0.2.1"]);
}

#[tokio::test]
async fn questions_on_one_connection_are_answered_as_they_can_be() {
    let silent = Server::start(|_, _, _| None).await;
    let (dns, at, _task) = start(&[silent.address]);
    dns.0.table.store(Some(Arc::new(table())));
    let mut stream = TcpStream::connect(at).await.unwrap();
    let (slow, quick) = (question("slow.example", RecordType::A), question("users", RecordType::AAAA));
    for message in [&slow, &quick] {
        let bytes = message.to_vec().unwrap();
        stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
    }
    // No more questions; the answers still come.
    stream.shutdown().await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..2 {
        let size = timeout(Duration::from_secs(10), stream.read_u16()).await.unwrap().unwrap();
        let mut bytes = vec![0; size.into()];
        stream.read_exact(&mut bytes).await.unwrap();
        ids.push(Message::from_vec(&bytes).unwrap().metadata.id);
    }
    assert_eq!(ids, [quick.metadata.id, slow.metadata.id]);
    assert!(stream.read_u16().await.is_err(), "the connection ends");
}

#[tokio::test]
async fn a_question_of_our_own_that_comes_back_is_waited_for_no_longer() {
    let (dns, at, _task) = start(&[]);
    dns.0.table.store(Some(Arc::new(table())));
    let began = Instant::now();
    let answer = by_udp(at, &question("a.example", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    // Four and a half seconds is what it would wait for an answer.
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    let page = crate::admin::Dns::page(&dns);
    assert_eq!(page["counters"]["loops_total"], 1);
    assert_eq!(page["servers"][0]["last_error"], "the kernel sends what it is asked back to this proxy");
}

#[tokio::test]
async fn an_address_that_is_taken_is_said_with_what_to_do() {
    let (_dns, at, _task) = start(&[]);
    let mut settings = settings();
    settings.listen = vec![(at, Needed::Always)];
    let error = format!("{:#}", bind(&settings).err().unwrap());
    assert!(error.contains(&at.to_string()) && error.contains("--dns-address"), "{error}");
}
