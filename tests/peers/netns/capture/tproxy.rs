//! TPROXY from end to end: the proxy takes a connection with both its addresses, and calls the application as the client.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::super::PATIENCE;
use super::super::hosts::{CLIENT, CLIENT6, Net, SERVER, SERVER6};
use super::hosts::{Listeners, Owner, Stop, as_owner, listeners};
use super::{any, ask_tcp, init_on};

/// The inbound side of a proxy, as somebody: each connection's destination is called with the client's address, and what that
/// says is passed on.
fn relay(owner: Owner, net: &Net, stop: &AtomicBool) {
    as_owner(&net.client, owner, || {
        let listeners = listeners(15006, true);
        while !stop.load(Relaxed) {
            let accepted: Vec<_> = listeners.iter().map(TcpListener::accept).collect();
            for outcome in accepted {
                match outcome {
                    Ok((stream, peer)) => drop(pass_on(stream, peer)),
                    Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

fn pass_on(mut stream: TcpStream, peer: SocketAddr) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    let to = stream.local_addr()?;
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if to.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_ip_transparent_v6(true)?;
    }
    socket.set_mark(1337)?;
    socket.bind(&SocketAddr::new(peer.ip(), 0).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let mut upstream = TcpStream::from(socket);
    upstream.set_read_timeout(Some(PATIENCE))?;
    let mut said = String::new();
    upstream.read_to_string(&mut said)?;
    write!(stream, "relayed: {said}")
}

/// Whoever the proxy runs as: its own user, or root with its group, as Istio has it.
#[test]
fn the_application_sees_the_clients_address_and_its_answer_comes_back_through_the_proxy() {
    for owner in [Owner::new(1337, 1337), Owner::new(0, 1337)] {
        let net = Net::new();
        let _app = Listeners::start(&net.client, "app", &[80, 81], &[]);
        init_on(&net.client, &["-m", "TPROXY", "-b", "*", "-d", "81", "-i", "*", "--backend", "nft"])
            .unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (root, web) = (Owner::new(0, 0), SocketAddr::new(CLIENT, 80));
            let past = as_owner(&net.server, root, || ask_tcp(any(web), web));
            assert_eq!(past, "", "while no proxy listens, nobody gets past it");
            scope.spawn(|| relay(owner, &net, &stop));
            let _stop = Stop(&stop);
            let ask = |host: &super::Host, owner, ip: IpAddr, port| {
                let to = SocketAddr::new(ip, port);
                // The relay may not be there yet.
                let end = std::time::Instant::now() + PATIENCE;
                loop {
                    let said = as_owner(host, owner, || ask_tcp(any(to), to));
                    if !said.is_empty() || std::time::Instant::now() > end {
                        return said;
                    }
                }
            };
            for _ in 0..3 {
                assert_eq!(
                    ask(&net.server, root, CLIENT, 80),
                    "relayed: app 10.77.0.1:80 10.78.0.3",
                    "{owner:?}"
                );
                assert_eq!(
                    ask(&net.server, root, CLIENT6, 80),
                    "relayed: app [fd77::1]:80 fd78::3",
                    "{owner:?}"
                );
            }
            assert_eq!(ask(&net.server, root, CLIENT, 81), format!("app 10.77.0.1:81 {SERVER}"));
            assert_eq!(ask(&net.server, root, CLIENT6, 81), format!("app [fd77::1]:81 {SERVER6}"));
            // The outbound side calls its own pod: through the inbound side, once.
            for (ip, shown) in [(CLIENT, "10.77.0.1:80 10.77.0.1"), (CLIENT6, "[fd77::1]:80 fd77::1")] {
                assert_eq!(ask(&net.client, owner, ip, 80), format!("relayed: app {shown}"), "{owner:?}");
            }
            // The application calls itself.
            assert_eq!(ask(&net.client, Owner::new(1000, 1000), CLIENT, 80), "app 10.77.0.1:80 10.77.0.1");
        });
    }
}
