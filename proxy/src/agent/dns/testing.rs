//! A pod's settings and table, and servers to ask, for tests.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use xds_protos::istio::networking::nds::v1::NameTable;
use xds_protos::istio::networking::nds::v1::name_table::NameInfo;

use super::message::Transport;
use super::serve::both;
use super::settings::{Settings, name};
use super::table::Table;

pub(super) fn settings() -> Settings {
    Settings {
        listen: Vec::new(),
        servers: Vec::new(),
        search: Some(name("shop.svc.cluster.local").unwrap()),
        namespace: "shop".to_owned(),
        domain: "svc.cluster.local".to_owned(),
    }
}

pub(super) fn info(ips: &[&str], registry: &str, shortname: &str, namespace: &str) -> NameInfo {
    NameInfo {
        ips: ips.iter().map(ToString::to_string).collect(),
        registry: registry.to_owned(),
        shortname: shortname.to_owned(),
        namespace: namespace.to_owned(),
        alt_hosts: Vec::new(),
    }
}

pub(super) fn table() -> Table {
    let table = [
        ("users.shop.svc.cluster.local", info(&["10.96.0.10", "fd96::10"], "Kubernetes", "users", "shop")),
        ("stock.store.svc.cluster.local", info(&["10.96.0.20"], "Kubernetes", "stock", "store")),
        ("db-0.db.shop.svc.cluster.local", info(&["10.0.0.7"], "Kubernetes", "db-0.db", "shop")),
        ("far.shop.svc.other.cluster", info(&["10.96.0.30"], "Kubernetes", "far", "shop")),
        ("api.example.com", info(&["240.240.0.1"], "External", "", "")),
        ("*.wild.example", info(&["240.240.0.2"], "External", "", "")),
        ("*.deep.wild.example", info(&["240.240.0.3"], "External", "", "")),
        ("exact.wild.example", info(&["240.240.0.4"], "External", "", "")),
    ];
    let table = table.map(|(host, info)| (host.to_owned(), info)).into();
    Table::new(NameTable { table, name_info: None }, &settings()).unwrap()
}

/// A DNS server on the loopback, by UDP and TCP.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    /// How many questions came.
    pub(super) asked: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// One whose answers `answer` makes, of the beginning of one; none: it keeps silent.
    pub(super) async fn start(
        answer: impl Fn(&Message, Transport, Message) -> Option<Message> + Send + Sync + 'static,
    ) -> Self {
        let (udp, tcp) = both((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = udp.local_addr().unwrap();
        let (udp, tcp) = (UdpSocket::from_std(udp).unwrap(), TcpListener::from_std(tcp).unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let answer = Arc::new(move |bytes: &[u8], transport| {
            count.fetch_add(1, Relaxed);
            let asked = Message::from_vec(bytes).unwrap();
            let mut begun = Message::response(asked.metadata.id, OpCode::Query);
            begun.add_queries(asked.queries.iter().cloned());
            answer(&asked, transport, begun).map(|m| m.to_vec().unwrap())
        });
        let mut tasks = JoinSet::new();
        let by_udp = answer.clone();
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (size, peer) = udp.recv_from(&mut buffer).await.unwrap();
                if let Some(bytes) = by_udp(&buffer[..size], Transport::Udp) {
                    udp.send_to(&bytes, peer).await.unwrap();
                }
            }
        });
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let size = stream.read_u16().await.unwrap();
                let mut buffer = vec![0; size.into()];
                stream.read_exact(&mut buffer).await.unwrap();
                if let Some(bytes) = answer(&buffer, Transport::Tcp) {
                    stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
                    stream.write_all(&bytes).await.unwrap();
                }
            }
        });
        Self { address, asked, _tasks: tasks }
    }

    /// One that has an address for every name.
    pub(super) async fn with_address(ip: &str, ttl: u32) -> Self {
        let ip: Ipv4Addr = ip.parse().unwrap();
        Self::start(move |asked, _, mut begun| {
            begun.add_answer(Record::from_rdata(asked.queries[0].name.clone(), ttl, RData::A(A(ip))));
            Some(begun)
        })
        .await
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }
}

/// A question as an application sends it.
pub(super) fn question(host: &str, kind: RecordType) -> Message {
    let mut message = Message::new(fastrand::u16(..), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(host).unwrap(), kind));
    message
}
