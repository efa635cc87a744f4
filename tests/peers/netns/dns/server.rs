//! A DNS server outside of the mesh, that can be told to keep silent.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::super::hosts::Host;

/// How long its answers hold, in seconds.
pub const TTL: u32 = 1;

/// The server; it ends when this is dropped.
#[derive(Clone, Default)]
pub struct Server(Arc<State>);

#[derive(Default)]
struct State {
    silent: AtomicBool,
    asked: Mutex<HashMap<String, usize>>,
}

/// Ends the server's threads when it is dropped.
pub struct Played {
    server: Server,
    stop: Arc<AtomicBool>,
}

impl Drop for Played {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

impl std::ops::Deref for Played {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Server {
    /// Serves port 53 of these addresses of a host.
    pub fn start(host: &Host, at: &[IpAddr]) -> Played {
        let (server, stop) = (Self::default(), Arc::new(AtomicBool::new(false)));
        for ip in at {
            let (udp, tcp) =
                host.inside(|| (UdpSocket::bind((*ip, 53)).unwrap(), TcpListener::bind((*ip, 53)).unwrap()));
            udp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            tcp.set_nonblocking(true).unwrap();
            let (by_udp, stopped) = (server.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while !stopped.load(Relaxed) {
                    let Ok((size, peer)) = udp.recv_from(&mut buffer) else { continue };
                    if let Some(answer) = by_udp.answer(&buffer[..size], true) {
                        udp.send_to(&answer, peer).unwrap();
                    }
                }
            });
            let (by_tcp, stopped) = (server.clone(), stop.clone());
            std::thread::spawn(move || {
                while !stopped.load(Relaxed) {
                    let Ok((mut stream, _)) = tcp.accept() else {
                        std::thread::sleep(Duration::from_millis(5));
                        continue;
                    };
                    stream.set_nonblocking(false).unwrap();
                    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                    let mut size = [0; 2];
                    stream.read_exact(&mut size).unwrap();
                    let mut bytes = vec![0; u16::from_be_bytes(size).into()];
                    stream.read_exact(&mut bytes).unwrap();
                    if let Some(answer) = by_tcp.answer(&bytes, false) {
                        let size = u16::try_from(answer.len()).unwrap().to_be_bytes();
                        stream.write_all(&[&size[..], &answer].concat()).unwrap();
                    }
                }
            });
        }
        Played { server, stop }
    }

    /// Hears, and says nothing.
    pub fn silence(&self, silent: bool) {
        self.0.silent.store(silent, Relaxed);
    }

    /// How often a name was asked for, of whatever type.
    pub fn asked(&self, name: &str) -> usize {
        self.0.asked.lock().unwrap().get(name).copied().unwrap_or(0)
    }

    /// How often a name was asked for, with whatever appended.
    pub fn asked_below(&self, name: &str) -> usize {
        let asked = self.0.asked.lock().unwrap();
        asked.iter().filter(|(host, _)| host.starts_with(name)).map(|(_, count)| count).sum()
    }

    /// How many questions there were.
    pub fn questions(&self) -> usize {
        self.0.asked.lock().unwrap().values().sum()
    }

    /// How many names were asked for that end so.
    pub fn names_below(&self, end: &str) -> usize {
        self.0.asked.lock().unwrap().keys().filter(|name| name.ends_with(end)).count()
    }

    fn answer(&self, bytes: &[u8], by_udp: bool) -> Option<Vec<u8>> {
        let asked = Message::from_vec(bytes).unwrap();
        let query = &asked.queries[0];
        let host = query.name.to_string().to_lowercase();
        *self.0.asked.lock().unwrap().entry(host.trim_end_matches('.').to_owned()).or_default() += 1;
        if self.0.silent.load(Relaxed) {
            return None;
        }
        let mut answer = Message::response(asked.metadata.id, OpCode::Query);
        answer.metadata.recursion_available = true;
        answer.add_query(query.clone());
        let record = |data| Record::from_rdata(query.name.clone(), TTL, data);
        match (host.as_str(), query.query_type) {
            ("outside.example." | "backend.example.", RecordType::A) => {
                answer.add_answer(record(RData::A(A::new(10, 77, 0, 2))));
            }
            (name, RecordType::A) if name.ends_with(".thousand.example.") => {
                answer.add_answer(record(RData::A(A::new(10, 77, 0, 2))));
            }
            ("outside.example.", RecordType::AAAA) => {
                answer.add_answer(record(RData::AAAA(AAAA::new(0xfd77, 0, 0, 0, 0, 0, 0, 2))));
            }
            ("many.example.", RecordType::A) if by_udp => answer.metadata.truncation = true,
            ("many.example.", RecordType::A) => {
                answer.add_answers((0..100).map(|n| record(RData::A(A(Ipv4Addr::new(192, 0, 2, n))))));
            }
            _ => {
                answer.metadata.response_code = ResponseCode::NXDomain;
                let root = Name::root();
                let soa = SOA::new(root.clone(), root.clone(), 1, 1, 1, 1, 60);
                answer.add_authority(Record::from_rdata(root, 60, RData::SOA(soa)));
            }
        }
        Some(answer.to_vec().unwrap())
    }
}
