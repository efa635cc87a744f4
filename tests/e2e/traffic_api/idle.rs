//! Connections to a service that nobody uses: they end after the time that was said, and no request is lost where the service gives
//! them up at the very same time.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::*;

const IDLE: Duration = Duration::from_millis(400);

/// A service that answers whatever it reads, and closes a connection on which nothing came for so long, if that is said; and how many
/// connections are open.
fn service(idle: Option<Duration>) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, open) = (listener.local_addr().unwrap().port(), Arc::<AtomicUsize>::default());
    let count = open.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let count = count.clone();
            count.fetch_add(1, Ordering::Relaxed);
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                stream.set_read_timeout(idle).unwrap();
                // A head of a proxy's comes at once.
                while stream.read(&mut buffer).is_ok_and(|read| read > 0)
                    && stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_ok()
                {
                }
                drop(stream);
                count.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    (port, open)
}

fn mesh(control: &'static str, ip: &'static str, port: u16) -> Mesh {
    let entry = format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: a, namespace: shop}}
spec:
  hosts: [a.com]
  ports: [{{number: 8080, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1, ports: {{http: {port}}}}}]
---
"
    );
    Mesh::start(control, ip, &(entry + &destination_rule("{connectionPool: {http: {idleTimeout: 400ms}}}")))
}

#[test]
fn a_connection_that_nobody_uses_ends_after_the_time_that_was_said() {
    let (port, open) = service(None);
    let mesh = mesh("127.49.44.1", "127.49.44.2", port);
    assert_eq!(mesh.get("/", "").0, 200);
    let before = Instant::now();
    eventually("it is closed", || open.load(Ordering::Relaxed) == 0);
    assert!(before.elapsed() < Duration::from_secs(15), "{:?}", before.elapsed());
}

#[test]
fn no_request_is_lost_to_a_service_that_gives_connections_up_at_the_same_time() {
    let (port, _) = service(Some(IDLE));
    let mesh = mesh("127.49.44.3", "127.49.44.4", port);
    let lost: Vec<_> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..12_u32)
            .map(|client| {
                let mesh = &mesh;
                scope.spawn(move || {
                    let mut lost = Vec::new();
                    for round in 0..8_u32 {
                        // From a little before to a little after the moment at which both are tired of it.
                        std::thread::sleep(
                            IDLE - Duration::from_millis(12) + Duration::from_millis(2) * client,
                        );
                        let answer = mesh.try_get(&format!("/{client}/{round}"), "");
                        if !answer.as_ref().is_ok_and(|answer| answer.0 == 200) {
                            lost.push(answer);
                        }
                    }
                    lost
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    assert!(lost.is_empty(), "{} of 96: {lost:?}", lost.len());
}
