//! A proxy that is told to end: it finishes what it has, says so on every inbound connection, leaves the application its outbound
//! ones, and has a deadline.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use xds_protos::ResourceType;

use crate::support::eventually;
use crate::support::http::{exchange, get};
use crate::support::world::{TO_BACKEND, World, all, cluster, listener, routes};

/// A service that answers a request only when it is told to.
struct Slow {
    address: SocketAddr,
    arrived: mpsc::Receiver<()>,
    release: mpsc::Sender<()>,
}

impl Slow {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ((arrival, arrived), (release, released)) = (mpsc::channel(), mpsc::channel());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            while !read_line(&mut reader).is_empty() {}
            arrival.send(()).unwrap();
            if released.recv().is_ok() {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nslow").unwrap();
            }
        });
        Self { address, arrived, release }
    }

    /// The proxy of `world` sends `/slow` here; the connection with a request that has arrived.
    fn busy(&self, world: &World) -> BufReader<TcpStream> {
        let to_slow =
            format!("  - {{match: {{prefix: /slow}}, route: {{cluster: slow, timeout: 0s}}}}\n{TO_BACKEND}");
        world.taken(ResourceType::Route, &all(&[cluster("slow", self.address, ""), routes(&to_slow)]));
        let mut busy = connect(world.at(8080));
        // Clusters come before routes; the route counts from its acknowledgement on.
        send(&mut busy, "/slow");
        self.arrived.recv_timeout(Duration::from_secs(10)).expect("the request arrives");
        busy
    }
}

fn connect(address: SocketAddr) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    BufReader::new(stream)
}

fn send(connection: &mut BufReader<TcpStream>, path: &str) {
    write!(connection.get_mut(), "GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
}

fn read_line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// An answer with a known length: head in small letters, and body.
fn answer(connection: &mut BufReader<TcpStream>) -> (String, String) {
    let mut head = String::new();
    loop {
        let line = read_line(connection);
        if line.is_empty() {
            break;
        }
        head.push_str(&line.to_ascii_lowercase());
        head.push('\n');
    }
    let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).expect("a length");
    let mut body = vec![0; length.parse().unwrap()];
    connection.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

/// Reads HTTP/2 frames up to one of this type, and gives its payload.
fn frame(connection: &mut impl Read, wanted: u8) -> Vec<u8> {
    loop {
        let mut head = [0; 9];
        connection.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        connection.read_exact(&mut payload).unwrap();
        if head[3] == wanted {
            return payload;
        }
    }
}

const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

/// Ends as soon as nothing is left.
const AT_ONCE: [&str; 3] = ["--exit-on-zero-active-connections", "--minimum-drain-time", "0s"];

/// Makes the listener `main` inbound, and adds an outbound one at 8081.
fn inbound_and_outbound(world: &World) {
    let with = |name: &str, port: u16, direction: &str| {
        listener(name, world.ip, port, "") + &format!("traffic_direction: {direction}\n")
    };
    let both = [with("main", 8080, "INBOUND"), with("out", 8081, "OUTBOUND")];
    world.taken(ResourceType::Listener, &all(&both));
    eventually("both listen", || get(world.at(8081), "/").is_ok_and(|a| a.0 == 200));
}

#[test]
fn what_is_in_flight_is_finished_and_every_connection_hears_of_it() {
    let mut world = World::start_with(
        "127.56.1.1",
        &[&AT_ONCE[..], &["--role", "gateway", "--drain-time", "8s"]].concat(),
    );
    let slow = Slow::start();
    let mut busy = slow.busy(&world);
    let mut idle = connect(world.at(8080));
    send(&mut idle, "/");
    let (head, body) = answer(&mut idle);
    assert!(body == "backend" && !head.contains("connection: close"), "{head}");
    let mut second = connect(world.at(8080));
    second.get_mut().write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    frame(&mut second, SETTINGS);

    world.proxy.terminate();
    let draining = (503, "DRAINING\n".to_owned());
    eventually("it drains", || get(world.at(15021), "/healthz/ready").is_ok_and(|a| a == draining));
    assert_eq!(get(world.at(15020), "/healthz/ready").unwrap(), draining);
    // A connection that was idle: one more request is answered, and it is the last.
    send(&mut idle, "/");
    let (head, body) = answer(&mut idle);
    assert!(body == "backend" && head.contains("connection: close"), "{head}");
    assert_eq!(idle.read(&mut [0]).unwrap(), 0, "the connection is closed");
    // HTTP/2: GOAWAY, without an error.
    let goaway = frame(&mut second, GOAWAY);
    assert_eq!(goaway[4..8], [0, 0, 0, 0]);
    // Who has not heard of it yet is served, and told.
    let mut late = connect(world.at(8080));
    send(&mut late, "/");
    let (head, body) = answer(&mut late);
    assert!(body == "backend" && head.contains("connection: close"), "{head}");
    // The one in flight.
    assert!(world.proxy.ended().is_none());
    slow.release.send(()).unwrap();
    let (head, body) = answer(&mut busy);
    assert!(body == "slow" && head.contains("connection: close"), "{head}");
    assert!(world.proxy.wait().success());
}

#[test]
fn at_the_deadline_what_is_left_is_cut() {
    let mut world = World::start_with("127.56.2.1", &[&AT_ONCE[..], &["--drain-time", "1s"]].concat());
    let slow = Slow::start();
    let mut busy = slow.busy(&world);
    let told = Instant::now();
    world.proxy.terminate();
    assert!(world.proxy.wait().success());
    let took = told.elapsed();
    assert!(took >= Duration::from_millis(900), "it waited only {took:?} for the request in flight");
    let mut rest = Vec::new();
    let _ = busy.read_to_end(&mut rest);
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    drop(slow.release);
}

#[test]
fn a_sidecar_lets_its_application_call_out_until_the_end() {
    let mut world = World::start_with("127.56.3.1", &["--drain-time", "4s", "--minimum-drain-time", "1s"]);
    inbound_and_outbound(&world);
    let mut outbound = connect(world.at(8081));
    let told = Instant::now();
    world.proxy.terminate();
    eventually("it drains", || get(world.at(15021), "/healthz/ready").is_ok_and(|a| a.0 == 503));
    let mut inbound = connect(world.at(8080));
    send(&mut inbound, "/");
    assert!(answer(&mut inbound).0.contains("connection: close"));
    // Nobody is connected, and still it does not end before its time: the application may have more to say, on old
    // connections and new ones, and hears nothing of the end.
    let mut last = told;
    while told.elapsed() < Duration::from_millis(3500) {
        send(&mut outbound, "/");
        let (head, body) = answer(&mut outbound);
        assert!(body == "backend" && !head.contains("connection: close"), "{head}");
        assert_eq!(get(world.at(8081), "/").unwrap().0, 200, "after {:?}", told.elapsed());
        last = Instant::now();
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(last - told > Duration::from_secs(3));
    assert!(TcpStream::connect(world.at(8080)).is_err(), "in its second half it takes nothing more inbound");
    assert!(world.proxy.wait().success());
    let took = told.elapsed();
    assert!(took >= Duration::from_millis(3900) && took < Duration::from_secs(8), "{took:?}");
}

#[test]
fn a_drain_that_was_asked_for_before_leaves_nothing_to_wait_for() {
    let mut world = World::start_with("127.56.4.1", &["--drain-time", "9s"]);
    inbound_and_outbound(&world);
    let post = |path: &str| {
        exchange(world.at(15020), &format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))
    };
    assert_eq!(get(world.at(15020), "/drain").unwrap().0, 405);
    assert_eq!(get(world.at(15020), "/quitquitquit").unwrap().0, 405);
    assert_eq!(world.get("/").unwrap().0, 200);
    assert!(post("/drain").unwrap().0.starts_with("HTTP/1.1 200"));
    assert_eq!(get(world.at(15020), "/healthz/ready").unwrap().0, 503);
    let mut inbound = connect(world.at(8080));
    send(&mut inbound, "/");
    assert!(answer(&mut inbound).0.contains("connection: close"));
    let mut outbound = connect(world.at(8081));
    send(&mut outbound, "/");
    assert!(!answer(&mut outbound).0.contains("connection: close"));
    // What a native sidecar gets when the application has ended.
    let told = Instant::now();
    world.proxy.terminate();
    assert!(world.proxy.wait().success());
    assert!(told.elapsed() < Duration::from_secs(5), "{:?}", told.elapsed());
}

#[test]
fn an_application_that_is_done_ends_its_proxy() {
    let mut world = World::start_with("127.56.5.1", &[&AT_ONCE[..], &["--drain-time", "9s"]].concat());
    let quit = "POST /quitquitquit HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let (head, body) = exchange(world.at(15020), quit).unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && body == "OK", "{head}");
    assert!(world.proxy.wait().success());
}

#[test]
fn the_least_time_is_kept_and_a_second_signal_ends_at_once() {
    let mut world = World::start_with(
        "127.56.6.1",
        &["--exit-on-zero-active-connections", "--minimum-drain-time", "1500ms", "--drain-time", "9s"],
    );
    let told = Instant::now();
    world.proxy.terminate();
    assert!(world.proxy.wait().success());
    let took = told.elapsed();
    assert!(took >= Duration::from_millis(1400) && took < Duration::from_secs(6), "{took:?}");

    let mut world = World::start_with("127.56.7.1", &["--drain-time", "60s"]);
    world.proxy.terminate();
    eventually("it drains", || get(world.at(15021), "/healthz/ready").is_ok_and(|a| a.0 == 503));
    world.proxy.terminate();
    assert!(world.proxy.wait().success());
}
