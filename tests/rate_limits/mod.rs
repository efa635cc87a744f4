//! RateLimits and Compressions through a gateway and a sidecar, whoever is in their place: a mesh, and what clients see of
//! them.

pub mod service;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use self::service::Service;

/// Where the mesh is: its gateway and the workload with the sidecar have addresses of their own.
pub struct Mesh {
    pub gateway: String,
    pub sidecar: String,
    pub service: Service,
    application: u16,
    issuer: Issuer,
}

/// Who issues tokens.
pub struct Issuer {
    /// Its keys.
    pub keys: String,
    /// A token with this `plan`.
    pub token: fn(&str) -> String,
}

/// An answer.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// A field's value.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

impl Mesh {
    pub fn new(gateway: &str, sidecar: &str, issuer: Issuer) -> Self {
        Self {
            gateway: gateway.to_owned(),
            sidecar: sidecar.to_owned(),
            service: Service::start(),
            application: application(),
            issuer,
        }
    }

    /// Its configuration.
    pub fn yaml(&self) -> String {
        let text = include_str!("mesh.yaml");
        let limits = include_str!("../../docs/examples/rate-limits.yaml");
        let compression = include_str!("../../docs/examples/compression.yaml");
        format!("{text}\n---\n{limits}\n---\n{compression}")
            .replace("GATEWAY", &self.gateway)
            .replace("SIDECAR", &self.sidecar)
            .replace("\"APPLICATION\"", &self.application.to_string())
            .replace(":APPL", &format!(":{}", self.application))
            .replace("JWKS", &self.issuer.keys)
            .replace("\"LIMITS\"", &self.service.port.to_string())
    }

    /// A request to the gateway, from an address.
    pub fn to_gateway(&self, from: &str, line: &str, fields: &str) -> Answer {
        ask(&self.gateway, from, line, fields).unwrap()
    }

    /// A request to the workload.
    pub fn to_workload(&self, line: &str, fields: &str) -> Answer {
        ask(&self.sidecar, "127.0.0.1", line, fields).unwrap()
    }

    /// Whether gateway and sidecar serve, and the limits hold there.
    pub fn serves(&self) -> bool {
        let at = |ip: &str| ask(ip, "127.0.0.1", "GET /ready", "").is_ok_and(|a| a.status == 200);
        let limited = |ip: &str| ask(ip, "127.0.0.1", "GET /limited", "").is_ok_and(|a| a.status == 429);
        at(&self.gateway) && at(&self.sidecar) && limited(&self.gateway) && limited(&self.sidecar)
    }

    /// What clients see; everything that is asserted here holds for every proxy.
    pub fn play(&self) {
        self.exact_counts();
        self.keys();
        self.claims();
        self.connections();
        self.routes();
        self.inbound();
        self.global();
        self.dry_run();
        self.compressed();
    }

    fn statuses(&self, count: usize, from: &str, line: &str, fields: &str) -> Vec<u16> {
        (0..count).map(|_| self.to_gateway(from, line, fields).status).collect()
    }

    /// As many as the bucket has, not one more, and the refusal says by what.
    fn exact_counts(&self) {
        let answers: Vec<_> = (0..8).map(|_| self.to_gateway("127.0.0.1", "POST /login", "")).collect();
        let statuses: Vec<_> = answers.iter().map(|a| a.status).collect();
        assert_eq!(statuses, [200, 200, 200, 200, 200, 429, 429, 429]);
        let refused = &answers[5];
        assert_eq!(refused.field("x-weft-ratelimited"), Some("edge/shop/login"), "{}", refused.head);
        assert!(
            refused.field("retry-after").is_some_and(|s| s.parse::<u64>().unwrap() > 1),
            "{}",
            refused.head
        );
        assert_eq!(answers[0].field("x-weft-ratelimited"), None);
        // What the rule is not about has no part in it: another method, a longer path, another host.
        assert_eq!(self.statuses(2, "127.0.0.1", "GET /login", ""), [200, 200]);
        assert_eq!(self.statuses(2, "127.0.0.1", "POST /logins", ""), [200, 200]);
        assert_eq!(self.statuses(2, "127.0.0.1", "POST /login?next=/", ""), [429, 429]);
        assert_eq!(self.statuses(2, "127.0.0.1", "POST /login", "host: other.example\r\n"), [200, 200]);
        // Two at once, and one in two seconds: what was refused passes later, as often as tokens came.
        let began = Instant::now();
        assert_eq!(self.statuses(2, "127.0.0.1", "GET /refill", ""), [200, 200]);
        let (mut passed, mut refused) = (0, 0);
        while began.elapsed() < Duration::from_secs(5) {
            match self.to_gateway("127.0.0.1", "GET /refill", "").status {
                200 => passed += 1,
                status => refused += usize::from(status == 429),
            }
        }
        let most = began.elapsed().as_millis() as usize / 2000 + 1;
        assert!((2..=most).contains(&passed) && refused > 0, "{passed} of {most} passed, {refused} did not");
    }

    /// Each key has a bucket of its own, and nobody escapes by leaving it out.
    fn keys(&self) {
        assert_eq!(self.statuses(4, "127.81.1.1", "GET /each", ""), [200, 200, 200, 429]);
        assert_eq!(self.statuses(4, "127.81.1.2", "GET /each", ""), [200, 200, 200, 429]);
        let user = |name: &str| format!("x-user: {name}\r\n");
        assert_eq!(self.statuses(3, "127.81.1.1", "GET /users?plan=a", &user("a")), [200, 200, 429]);
        assert_eq!(self.statuses(3, "127.81.1.1", "GET /users?plan=a", &user("b")), [200, 200, 429]);
        assert_eq!(self.statuses(3, "127.81.1.1", "GET /users?plan=b", &user("b")), [200, 200, 429]);
        assert_eq!(self.statuses(3, "127.81.1.1", "GET /users?plan=c", ""), [200, 200, 429]);
        assert_eq!(self.statuses(3, "127.81.1.1", "GET /users", ""), [200, 200, 429]);
    }

    /// By a claim of the token: each value has a bucket, whoever's token it is, and those without a token have one together.
    fn claims(&self) {
        let with = |plan: &str| format!("authorization: Bearer {}\r\n", (self.issuer.token)(plan));
        for plan in ["gold", "free"] {
            let answers: Vec<_> =
                (0..4).map(|_| self.to_gateway("127.0.0.1", "GET /plans", &with(plan))).collect();
            assert_eq!(answers.iter().map(|a| a.status).collect::<Vec<_>>(), [200, 200, 429, 429], "{plan}");
            assert_eq!(answers[3].field("x-weft-ratelimited"), Some("edge/shop/plans"));
        }
        assert_eq!(self.statuses(3, "127.0.0.1", "GET /plans", ""), [200, 200, 429]);
        // What somebody says in a header is no claim.
        assert_eq!(self.statuses(1, "127.0.0.1", "GET /plans", "plan: silver\r\n"), [429]);
        assert_eq!(self.statuses(2, "127.0.0.1", "GET /plans", &with("silver")), [200, 200]);
    }

    /// Connections, at the workload by a bucket and at the gateway by the service, whatever is said on them.
    fn connections(&self) {
        let to = |ip: &str, from: &str| speaks((ip, 9000), from).is_ok_and(|said| said.contains("yes"));
        let sidecar: Vec<_> = (0..5).map(|_| to(&self.sidecar, "127.0.0.1")).collect();
        assert_eq!(sidecar, [true, true, true, false, false]);
        assert_eq!(self.to_workload("GET /other", "").status, 200, "another port");
        for from in ["127.81.1.1", "127.81.1.2"] {
            let gateway: Vec<_> = (0..4).map(|_| to(&self.gateway, from)).collect();
            assert_eq!(gateway, [true, true, false, false], "{from}");
        }
        let descriptors = self.service.descriptors();
        let wanted = "bytes:rule=clients,remote_address=127.81.1.2";
        assert!(descriptors.iter().any(|d| d == wanted), "{descriptors:?}");
        self.service.down(true);
        assert!(!to(&self.gateway, "127.81.1.3"), "the policy is Closed");
        self.service.down(false);
        assert!(to(&self.gateway, "127.81.1.3"));
    }

    /// A route of a VirtualService by its name.
    fn routes(&self) {
        let refused = (0..3).map(|_| self.to_gateway("127.0.0.1", "GET /reports/1", "")).collect::<Vec<_>>();
        assert_eq!(refused.iter().map(|a| a.status).collect::<Vec<_>>(), [200, 429, 429]);
        assert_eq!(refused[2].field("x-weft-ratelimited"), Some("edge/shop/reports"));
        assert_eq!(self.statuses(3, "127.0.0.1", "GET /report", ""), [200, 200, 200]);
    }

    /// At the workload itself.
    fn inbound(&self) {
        let answers: Vec<_> = (0..4).map(|_| self.to_workload("GET /stock", "")).collect();
        assert_eq!(answers.iter().map(|a| a.status).collect::<Vec<_>>(), [200, 200, 429, 429]);
        assert_eq!(answers[3].field("x-weft-ratelimited"), Some("shop/api/stock"));
        assert_eq!(answers[0].field("x-ratelimit-limit"), Some("2"), "{}", answers[0].head);
        assert_eq!(answers[0].field("x-ratelimit-remaining"), Some("1"));
        let grpc = self.to_workload("POST /stock", "content-type: application/grpc\r\n");
        assert_eq!((grpc.status, grpc.field("grpc-status")), (200, Some("8")), "{}", grpc.head);
    }

    /// The service counts for all proxies, and what becomes of requests while it is down is as the policy says.
    fn global(&self) {
        let user = |name: &str| format!("x-user: {name}\r\n");
        assert_eq!(self.statuses(3, "127.0.0.1", "GET /open", &user("a")), [200, 200, 429]);
        assert_eq!(self.statuses(3, "127.0.0.1", "GET /open", &user("b")), [200, 200, 429]);
        let refused = self.to_gateway("127.0.0.1", "GET /open", &user("b"));
        assert_eq!(refused.field("x-weft-ratelimited"), Some("edge/global/open"), "{}", refused.head);
        assert_eq!(self.statuses(3, "127.0.0.1", "GET /closed", ""), [200, 429, 429], "one counts for two");
        let descriptors = self.service.descriptors();
        for wanted in ["edge:rule=open,x-user=a", "edge:rule=open,x-user=b", "edge-closed:rule=closed"] {
            assert!(descriptors.iter().any(|d| d == wanted), "{wanted}: {descriptors:?}");
        }
        self.service.down(true);
        assert_eq!(self.statuses(3, "127.0.0.1", "GET /open", &user("a")), [200, 200, 200]);
        assert_eq!(self.statuses(2, "127.0.0.1", "GET /closed", ""), [503, 503]);
        self.service.down(false);
        assert_eq!(self.statuses(1, "127.0.0.1", "GET /open", &user("a")), [429]);
        assert_eq!(self.statuses(1, "127.0.0.1", "GET /closed", ""), [429]);
    }

    /// What is only tried refuses nothing.
    fn dry_run(&self) {
        assert_eq!(self.statuses(3, "127.0.0.1", "GET /tried", ""), [200, 200, 200]);
    }
}

impl Mesh {
    /// What the gateway compresses, and what not.
    fn compressed(&self) {
        let ask = |path: &str, accepts: &str| {
            let answer = self.to_gateway("127.0.0.1", path, &format!("accept-encoding: {accepts}\r\n"));
            let encoding = answer.field("content-encoding").unwrap_or("none").to_owned();
            let mut plain = Vec::new();
            let body = answer.body.as_slice();
            let read = match encoding.as_str() {
                "br" => brotli::Decompressor::new(body, 4096).read_to_end(&mut plain),
                "gzip" => flate2::read::GzDecoder::new(body).read_to_end(&mut plain),
                _ => std::io::Cursor::new(body).read_to_end(&mut plain),
            };
            read.unwrap();
            let short = answer.body.len() < plain.len() / 5;
            assert_eq!(String::from_utf8(plain).unwrap(), page(path.contains("/page")), "{}", answer.head);
            let vary = answer.field("vary").is_some_and(|v| v.eq_ignore_ascii_case("accept-encoding"));
            (encoding, short, vary)
        };
        let is = |encoding: &str, short, vary| (encoding.to_owned(), short, vary);
        assert_eq!(ask("GET /page", "gzip, deflate, br"), is("br", true, true));
        assert_eq!(ask("GET /page", "gzip"), is("gzip", true, true));
        assert_eq!(ask("GET /page", "br;q=0.5, gzip"), is("gzip", true, true));
        assert_eq!(ask("GET /page", "identity"), is("none", false, true));
        assert_eq!(ask("GET /ready", "gzip, br"), is("none", false, false), "too short, and of no type");
    }
}

/// What the application says: yes, or a page.
fn page(long: bool) -> String {
    if long { "<p>a page that is worth its while</p>".repeat(100) } else { "yes".to_owned() }
}

/// An application that says yes, until the process ends.
fn application() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut writer = stream.try_clone()?;
                let mut lines = BufReader::new(stream).lines();
                let mut long = false;
                while let Some(line) = lines.next().transpose()? {
                    long |= line.starts_with("GET /page");
                    if line.is_empty() {
                        let kind = if long { "content-type: text/html\r\n" } else { "" };
                        let text = page(long);
                        write!(
                            writer,
                            "HTTP/1.1 200 OK\r\n{kind}content-length: {}\r\n\r\n{text}",
                            text.len()
                        )?;
                        long = false;
                    }
                }
                Ok(())
            });
        }
    });
    port
}

fn ask(ip: &str, from: &str, line: &str, fields: &str) -> std::io::Result<Answer> {
    let mut stream = connect((ip, 8080), from)?;
    let host = if fields.starts_with("host: ") { "" } else { "host: shop.example\r\n" };
    write!(stream, "{line} HTTP/1.1\r\n{host}{fields}content-length: 0\r\nconnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(bytes.len());
    let head = String::from_utf8_lossy(&bytes[..end]).replace('\r', "");
    let status = head.get(9..12).and_then(|s| s.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(head.clone()))?;
    let mut body = bytes.get(end + 4..).unwrap_or_default().to_vec();
    if head.contains("transfer-encoding: chunked") {
        body = chunks(&body);
    }
    Ok(Answer { status, head, body })
}

/// The data of a chunked body.
fn chunks(mut bytes: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    while let Some(end) = bytes.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        data.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = bytes.get(end + 4 + size..).unwrap_or_default();
    }
    data
}

fn connect((ip, port): (&str, u16), from: &str) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    let from: IpAddr = from.parse().unwrap();
    socket.bind(&SocketAddr::new(from, 0).into())?;
    let to = SocketAddr::new(ip.parse().unwrap(), port);
    socket.connect_timeout(&to.into(), Duration::from_secs(5))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

/// What the application says through a port for bytes; nothing if the connection is closed.
fn speaks(at: (&str, u16), from: &str) -> std::io::Result<String> {
    let mut stream = connect(at, from)?;
    stream.write_all(b"GET /bytes HTTP/1.1\r\nhost: a\r\n\r\n")?;
    let (mut bytes, mut buffer) = (Vec::new(), [0; 1024]);
    while !bytes.ends_with(b"yes") {
        match stream.read(&mut buffer)? {
            0 => break,
            n => bytes.extend_from_slice(&buffer[..n]),
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
