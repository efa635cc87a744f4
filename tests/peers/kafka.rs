//! Apache Kafka: a broker, and its own command-line clients.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use crate::netns::hosts::Host;
use crate::programs::{Process, peer};

/// A Java program of Kafka's.
fn java(class: &str, heap: &str) -> Command {
    let mut java = Command::new(peer("WEFT_JAVA"));
    java.args([heap, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp"]);
    java.arg(format!("{}/*", peer("WEFT_KAFKA").display())).arg(class);
    java
}

/// A node of a Kafka cluster.
pub struct Node<'a> {
    /// Its number in the cluster.
    pub id: u32,
    /// `broker`, `controller`, or both.
    pub roles: &'a str,
    /// Where it listens, as its property of that name wants it.
    pub listeners: &'a str,
    /// The controller: its number, and where it is.
    pub voter: &'a str,
    /// Where others are told to find it; none of a controller alone.
    pub advertised: Option<&'a str>,
    /// How many brokers there are, and so how many copies of what consumers have read.
    pub brokers: u32,
}

impl Node<'_> {
    /// Makes its directory, and gives the command that runs it.
    pub fn prepare(&self, directory: &Path) -> Command {
        let own = directory.join(format!("kafka-{}", self.id));
        std::fs::create_dir(&own).unwrap();
        let mut text = format!(
            "process.roles={}\nnode.id={}\ncontroller.quorum.voters={}\nlisteners={}\n\
             controller.listener.names=CONTROLLER\ninter.broker.listener.name=PLAINTEXT\nlog.dirs={}\n\
             offsets.topic.replication.factor={}\noffsets.topic.num.partitions=1\n\
             transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\nauto.create.topics.enable=true\n\
             broker.session.timeout.ms=3000\nreplica.lag.time.max.ms=5000\nbroker.heartbeat.interval.ms=500\n",
            self.roles,
            self.id,
            self.voter,
            self.listeners,
            own.join("data").display(),
            self.brokers
        );
        if let Some(advertised) = self.advertised {
            text += &format!("advertised.listeners={advertised}\n");
        }
        let properties = own.join("server.properties");
        std::fs::write(&properties, text).unwrap();
        // Any number in Kafka's form will do.
        let mut format = java("kafka.tools.StorageTool", "-Xmx64m");
        format.args(["format", "-t", "d2VmdC10ZXN0LWthZmthMQ", "-c"]).arg(&properties);
        crate::programs::run(&mut format).unwrap();
        let mut kafka = java("kafka.Kafka", "-Xmx256m");
        kafka.arg(properties);
        kafka
    }
}

/// Starts a node on a host; it is up when this port of its takes connections.
pub fn start(host: &Host, name: &str, command: &Command, port: u16, directory: &Path) -> Process {
    let mut kafka = Process::start(name, &mut host.command(command), directory);
    kafka.wait("accepting", || {
        host.inside(|| std::net::TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port))).is_ok()
    });
    kafka
}

/// Creates a topic from here.
pub fn create_topic(from: &Host, servers: &str, topic: &str, replicas: u32) {
    let mut create = java("org.apache.kafka.tools.TopicCommand", "-Xmx64m");
    create.args(["--bootstrap-server", servers, "--create", "--if-not-exists", "--topic", topic]);
    create.args(["--partitions", "1", "--replication-factor", &replicas.to_string()]);
    crate::programs::run(&mut from.command(&create)).unwrap();
}

/// A producer that runs all the time; each line is a message, acknowledged by all replicas.
pub struct Producer(Child);

impl Producer {
    /// On this host.
    pub fn start(from: &Host, servers: &str, topic: &str, log: &Path) -> Self {
        let mut java = java("org.apache.kafka.tools.ConsoleProducer", "-Xmx64m");
        java.args([
            "--bootstrap-server",
            servers,
            "--topic",
            topic,
            "--sync",
            "--request-required-acks",
            "-1",
        ]);
        java.args(["--message-send-max-retries", "1000", "--retry-backoff-ms", "100"]);
        let log = std::fs::File::create(log).unwrap();
        let mut command = from.command(&java);
        Self(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    /// Sends a message.
    pub fn send(&mut self, line: &str) {
        let stdin = self.0.stdin.as_mut().unwrap();
        writeln!(stdin, "{line}").unwrap();
        stdin.flush().unwrap();
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A consumer that runs until this is dropped.
pub struct Consumer(Child);

impl Consumer {
    /// On this host, as one of a group, from the topic's beginning; and the messages, in their order, which end with it.
    pub fn start(from: &Host, servers: &str, topic: &str, log: &Path) -> (Self, Receiver<String>) {
        let mut java = java("org.apache.kafka.tools.consumer.ConsoleConsumer", "-Xmx64m");
        java.args([
            "--bootstrap-server",
            servers,
            "--topic",
            topic,
            "--group",
            "readers",
            "--from-beginning",
        ]);
        let log = std::fs::File::create(log).unwrap();
        let mut command = from.command(&java);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        (Self(child), messages)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
