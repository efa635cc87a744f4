//! What the table of flags does not show: the same port twice, a pod without IPv6, and the moment in which rules are replaced.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use socket2::{Domain, Socket, Type};

use super::super::hosts::{CLIENT, CLIENT6, SERVER, SERVER6};
use super::cases::check;
use super::hosts::{Owner, Stop, as_owner};
use super::{BACKENDS, SILENCE, World};

/// Asks for a name from this port; gives the first word of the answer.
fn ask_from(world: &World, owner: Owner, from: IpAddr, port: u16, server: IpAddr) -> String {
    as_owner(world.pod(), owner, || {
        let socket =
            Socket::new(Domain::for_address(SocketAddr::new(from, port)), Type::DGRAM, None).unwrap();
        socket.bind(&SocketAddr::new(from, port).into()).unwrap();
        let socket = UdpSocket::from(socket);
        socket.connect((server, 53)).unwrap();
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        socket.send(b"?").unwrap();
        let mut bytes = [0; 200];
        let count = socket.recv(&mut bytes).unwrap_or_default();
        String::from_utf8_lossy(&bytes[..count]).split(' ').next().unwrap().to_owned()
    })
}

/// The kernel takes a second conversation between the same ports for the first one, unless it tracks them apart.
#[test]
fn who_asks_for_a_name_decides_who_answers_even_from_the_same_port() {
    let world = World::new(false);
    let (app, proxy) = (Owner::new(1000, 1000), Owner::new(1337, 1337));
    for (at, backend) in BACKENDS.into_iter().enumerate() {
        world.init(&["--redirect-dns", "--capture-all-dns", "--backend", backend]).unwrap();
        for (from, server) in [(CLIENT, SERVER), (CLIENT6, SERVER6)] {
            let port = 5000 + 10 * u16::try_from(at).unwrap();
            let ask = |owner, port| ask_from(&world, owner, from, port, server);
            for _ in 0..2 {
                assert_eq!([ask(proxy, port), ask(app, port)], ["direct", "dns"], "{backend} {from}");
                assert_eq!([ask(app, port + 1), ask(proxy, port + 1)], ["dns", "direct"], "{backend} {from}");
            }
        }
    }
}

#[test]
fn a_pod_without_ipv6_is_captured_as_well() {
    for transparent in [false, true] {
        let world = World::new(transparent);
        world.pod().sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        for backend in BACKENDS.into_iter().take(if transparent { 1 } else { 3 }) {
            let mode = if transparent { "TPROXY" } else { "REDIRECT" };
            world.init(&["-i", "*", "-b", "*", "-m", mode, "--backend", backend]).unwrap();
            let lines = ["app 10.78.0.3:80 out", "server 10.77.0.1:80 in", "proxy 10.77.0.1:80 in"];
            check(&world, &format!("{mode} by {backend}"), &lines);
        }
        world.init(&["--clean"]).unwrap();
        check(&world, "taken away", &["app 10.78.0.3:80 direct", "server 10.77.0.1:80 app"]);
    }
}

/// Whoever dials while other flags, and other backends, take the place of the first ones.
#[test]
fn nothing_slips_through_while_rules_are_replaced() {
    let world = World::new(false);
    let init = |extra: &[&str], backend| {
        let flags = [&["-i", "*", "-b", "*", "--backend", backend][..], extra].concat();
        world.init(&flags).unwrap();
    };
    init(&[], "nft");
    let done = AtomicBool::new(false);
    let dialled = std::thread::scope(|scope| {
        let dial = scope.spawn(|| {
            let mut count = 0;
            while !done.load(Relaxed) {
                let lines = ["app 10.78.0.3:80 out", "server 10.77.0.1:80 in", "server [fd77::1]:80 in"];
                check(&world, "in between", &lines);
                count += lines.len();
            }
            count
        });
        let stop = Stop(&done);
        for _ in 0..3 {
            for backend in BACKENDS {
                init(&[], backend);
                init(&["-o", "22", "-x", "10.9.0.0/16", "--redirect-dns", "--capture-all-dns"], backend);
                init(&["-d", "15021", "--drop-invalid"], backend);
            }
        }
        drop(stop);
        dial.join().unwrap()
    });
    assert!(dialled > 100, "{dialled} connections");
}
