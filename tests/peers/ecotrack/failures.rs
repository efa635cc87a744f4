//! What befalls a mesh, and what is left of it: nothing is lost that could be saved, and all comes back by itself.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{API, CARD, EcoTrack, WORKLOADS, mesh, service};
use crate::netns::databases::{psql, redis_cli};
use crate::netns::hosts::{Host, Serving};
use crate::programs::{Process, until_or};

impl EcoTrack {
    /// A request that ends at product-service: its status, and how long it took.
    pub(super) fn browse(&self) -> (String, Duration) {
        let began = Instant::now();
        let (status, _) = self.curl(&format!("https://{API}/api/products"), &[]);
        (status, began.elapsed())
    }

    /// Nothing fails for so many requests.
    pub(super) fn browses(&self, what: &str, times: usize) {
        for number in 0..times {
            let (status, took) = self.browse();
            assert_eq!(status, "200", "{what}: request {number}, after {took:?}\n{}", self.story());
        }
    }

    /// The whole journey works again, soon.
    pub(super) fn recovers(&self, what: &str) {
        let mut last = String::new();
        until_or(
            &format!("{what}: {last}"),
            || self.story(),
            || {
                let done = self.journey(&format!("tx-{what}").replace(' ', "-"));
                done.map_err(|error| last = error).is_ok()
            },
        );
    }

    /// Takes a workload's host off the wire, or puts it there again.
    fn cable(&self, name: &str, state: &str) {
        let number = WORKLOADS.iter().position(|w| w.1 == name).unwrap() + 2;
        self.switch.host.ip(&format!("link set port{number} {state}"));
    }
}

/// Passes connections on to another host, each piece of either direction a while later.
fn delayed(relay: &Host, to: SocketAddr, by: Duration) -> Serving {
    let name = relay.name().to_owned();
    relay.serve(Ipv4Addr::UNSPECIFIED, to.port(), move |near, _| -> std::io::Result<()> {
        let far = crate::netns::hosts::inside(&name, || TcpStream::connect(to))?;
        let (back_near, back_far) = (near.try_clone()?, far.try_clone()?);
        let back = std::thread::spawn(move || pass(back_far, back_near, by));
        pass(near, far, by);
        let _ = back.join();
        Ok(())
    })
}

fn pass(mut from: TcpStream, mut into: TcpStream, by: Duration) {
    let mut buffer = vec![0; 65536];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        // It is delay that is made here, and nothing that is waited for.
        std::thread::sleep(by);
        if into.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = into.shutdown(std::net::Shutdown::Write);
}

#[test]
fn the_mesh_outlives_what_befalls_it() {
    let mut ecotrack = EcoTrack::start();
    ecotrack.recovers("at rest");

    // A partition: who is behind it cannot be reached, which is said in time; others do not notice.
    ecotrack.cable("order-service", "down");
    let began = Instant::now();
    let (status, said) = ecotrack.curl(&format!("https://{API}/api/orders"), &["-d", &format!("1 {CARD}")]);
    // The connection is there still, as far as anybody knows: only the time tells.
    assert_eq!(status, "504", "{said}\n{}", ecotrack.story());
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    ecotrack.browses("a partition elsewhere", 20);
    ecotrack.cable("order-service", "up");
    ecotrack.recovers("the partition is over");

    // One packet of twenty is lost at each of two hosts, both ways; at one after the other, for a connection to the database whose
    // beginning was lost four times in a row is given up by the application, which at both together befalls one run of forty.
    for name in ["product-service", "postgres-primary"] {
        ecotrack.hosts[name].nft(
            "table inet loss {
                chain in { type filter hook prerouting priority -500; iifname \"eth0\" numgen random mod 100 < 5 drop }
                chain out { type filter hook postrouting priority 500; oifname \"eth0\" numgen random mod 100 < 5 drop }
            }",
        );
        ecotrack.browses(&format!("packets are lost at {name}"), 20);
        ecotrack.hosts[name].nft("delete table inet loss");
    }

    // A tenth of a second more in each direction.
    let relay = ecotrack.switch.attach("relay", "10.88.9.1");
    let product = "10.88.2.2:8080".parse().unwrap();
    let far = delayed(&relay, product, Duration::from_millis(100));
    let file = ecotrack.pods.file("config/mesh.yaml");
    std::fs::write(&file, mesh().replace("address: 10.88.2.2", "address: 10.88.9.1")).unwrap();
    until_or(
        "requests go the slow way",
        || ecotrack.story(),
        || ecotrack.browse().1 > Duration::from_millis(200),
    );
    ecotrack.browses("packets are late", 10);
    std::fs::write(&file, mesh()).unwrap();
    until_or(
        "they go the short way again",
        || ecotrack.story(),
        || ecotrack.browse().1 < Duration::from_millis(200),
    );
    drop(far);

    // The name server is gone: what was found stays where it was.
    drop(ecotrack.names.take());
    let end = Instant::now() + Duration::from_secs(8);
    let mut number = 0;
    while Instant::now() < end {
        number += 1;
        ecotrack.journey(&format!("tx-dns-{number}")).unwrap_or_else(|e| panic!("{e}\n{}", ecotrack.story()));
    }

    // Each server of data is killed, and comes back; meanwhile errors are clean, and of those alone who need it.
    for name in ["postgres-primary", "redis", "kafka"] {
        let (command, process) = ecotrack.processes.get_mut(name).unwrap();
        process.end();
        let mut command = std::mem::replace(command, std::process::Command::new("true"));
        if name == "postgres-primary" {
            let (status, took) = ecotrack.browse();
            assert_eq!(status, "500", "the application's own answer");
            assert!(took < Duration::from_secs(15), "{took:?}");
        } else {
            ecotrack.browses("another server is away", 5);
        }
        let again = Process::start_again(name, &mut command, ecotrack.directory.path());
        ecotrack.processes.insert(name, (command, again));
        ecotrack.recovers(&format!("{name} is back"));
    }
    // What was said to Kafka before it was killed is not lost on the way to Redis.
    let own = |query: &str| psql(&ecotrack.hosts["postgres-primary"], "127.0.0.1", "disable", query).unwrap();
    let transaction = own("select transaction from payments order by id desc limit 1");
    let key = format!("notified:{transaction}");
    until_or(
        "the last notification came",
        || ecotrack.story(),
        || redis_cli(&ecotrack.hosts["redis"], "127.0.0.1", &["exists", &key]).is_ok_and(|said| said == "1"),
    );

    // A sidecar is killed and started anew by its supervisor: it serves within a second of that.
    ecotrack.pods.restart("product-service");
    let began = Instant::now();
    let mut failed = Vec::new();
    loop {
        match ecotrack.browse() {
            (status, _) if status == "200" => break,
            (status, _) => failed.push(status),
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{failed:?}\n{}", ecotrack.story());
    }
    println!("served {:?} after its sidecar was killed, {failed:?} meanwhile", began.elapsed());
    assert!(failed.iter().all(|status| status == "503"), "{failed:?}");

    // A sidecar is frozen, and thaws: who waited is answered.
    ecotrack.pods.send("product-service", Signal::STOP);
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..5).map(|_| scope.spawn(|| ecotrack.browse())).collect();
        let users = service("user-service");
        let headers = "host: user-service.ecotrack:8080\r\n";
        for _ in 0..10 {
            let said =
                super::http::ask(&ecotrack.hosts["order-service"], users, "GET /api/users", headers, "");
            assert_eq!(said.status(), 200, "who is not frozen: {said:?}");
        }
        ecotrack.pods.send("product-service", Signal::CONT);
        for answer in waiting {
            assert_eq!(answer.join().unwrap().0, "200");
        }
    });

    // The control plane is away, and all of this works still.
    ecotrack.pods.kill("control");
    ecotrack.recovers("without a control plane");
    ecotrack.browses("without a control plane", 20);
}
