//! The table: flags, and who is captured by them.

use super::{BACKENDS, Outcome, Probe, World};

/// Flags, and lines of who dials what and where that ends. An address after `@` is the one that is dialled from.
struct Case {
    flags: &'static str,
    /// With iptables there is no TPROXY.
    nft_alone: bool,
    expected: &'static str,
}

const fn case(flags: &'static str, expected: &'static str) -> Case {
    Case { flags, nft_alone: false, expected }
}

const fn nft(flags: &'static str, expected: &'static str) -> Case {
    Case { flags, nft_alone: true, expected }
}

const CASES: &[Case] = &[
    case(
        "",
        "app 10.78.0.3:80 direct
         app [fd78::3]:80 direct
         app udp 10.78.0.3:53 direct
         server 10.77.0.1:80 app
         server [fd77::1]:80 app",
    ),
    case(
        "-i *",
        "app 10.78.0.3:80 out
         app 10.78.0.3:443 out
         app [fd78::3]:80 out
         root 10.78.0.3:80 out
         root [fd78::3]:81 out
         proxy 10.78.0.3:80 direct
         proxy [fd78::3]:80 direct
         proxy-uid 10.78.0.3:80 direct
         proxy-gid 10.78.0.3:80 direct
         proxy-gid [fd78::3]:80 direct
         app udp 10.78.0.3:53 direct
         app udp 10.78.0.3:54 direct
         app 127.0.0.1:80 app
         app [::1]:80 app
         app 127.1.2.3:80 app
         app 10.77.0.1:80 app
         app [fd77::1]:80 app
         server 10.77.0.1:80 app
         server [fd77::1]:80 app",
    ),
    // A pod that calls its own service: the outbound side has chosen the pod itself.
    case(
        "-i * -b *",
        "proxy 10.77.0.1:80 in
         proxy [fd77::1]:80 in
         proxy 127.0.0.1:80 app
         proxy [::1]:80 app
         proxy 10.77.0.1:15008 app
         proxy [fd77::1]:15008 app
         proxy@127.0.0.6 10.77.0.1:80 app
         proxy@::6 [fd77::1]:80 app
         app 10.77.0.1:80 app
         app 10.78.0.3:80 out
         server 10.77.0.1:80 in
         server [fd77::1]:80 in
         server 10.77.0.1:81 in
         server 10.77.0.1:15008 app
         server [fd77::1]:15008 app
         server 10.77.0.1:15020 in",
    ),
    case(
        "-i * -b * -d 15090,15021,15020",
        "server 10.77.0.1:80 in
         server 10.77.0.1:15020 app
         server 10.77.0.1:15021 app
         server [fd77::1]:15021 app
         app 10.78.0.3:80 out",
    ),
    case(
        "-b 81",
        "server 10.77.0.1:81 in
         server [fd77::1]:81 in
         server 10.77.0.1:80 app
         server [fd77::1]:80 app
         app 10.78.0.3:80 direct",
    ),
    case(
        "-b 80,81,15008",
        "server 10.77.0.1:80 in
         server 10.77.0.1:81 in
         server 10.77.0.1:15008 app
         server 10.77.0.1:15020 app",
    ),
    // Exclusions count with * alone.
    case("-b 80 -d 80", "server 10.77.0.1:80 in\nserver 10.77.0.1:81 app"),
    case(
        "-i 10.78.0.0/24",
        "app 10.78.0.3:80 out
         app 10.77.0.2:80 direct
         app [fd78::3]:80 direct
         proxy 10.78.0.3:80 direct",
    ),
    case(
        "-i fd78::/64",
        "app [fd78::3]:80 out
         app [fd77::2]:80 direct
         app 10.78.0.3:80 direct",
    ),
    case(
        "-i 10.78.0.3/32,fd77::2/128",
        "app 10.78.0.3:80 out
         app [fd77::2]:80 out
         app 10.77.0.2:80 direct
         app [fd78::3]:80 direct",
    ),
    case(
        "-i * -x 10.78.0.0/24,fd77::/64",
        "app 10.78.0.3:80 direct
         app 10.77.0.2:80 out
         app [fd77::2]:80 direct
         app [fd78::3]:80 out",
    ),
    case(
        "-i 10.0.0.0/8 -x 10.77.0.0/16",
        "app 10.78.0.3:80 out
         app 10.77.0.2:80 direct
         app [fd78::3]:80 direct",
    ),
    case(
        "-q 443",
        "app 10.78.0.3:443 out
         app [fd78::3]:443 out
         app 10.78.0.3:80 direct
         proxy 10.78.0.3:443 direct",
    ),
    case(
        "-q 443 -i 10.77.0.0/24 -x fd78::/64",
        "app 10.78.0.3:443 out
         app 10.78.0.3:80 direct
         app 10.77.0.2:80 out
         app [fd78::3]:443 direct",
    ),
    case(
        "-i * -o 443,81",
        "app 10.78.0.3:443 direct
         app [fd78::3]:81 direct
         app 10.78.0.3:80 out",
    ),
    case("-q 443,80 -o 443", "app 10.78.0.3:443 direct\napp 10.78.0.3:80 out"),
    case(
        "-i * -b * -c eth0",
        "app 10.78.0.3:80 direct
         app [fd78::3]:80 direct
         server 10.77.0.1:80 app
         server [fd77::1]:80 app
         proxy 10.77.0.1:80 in",
    ),
    case("-i * -b * -c eth7", "app 10.78.0.3:80 out\nserver 10.77.0.1:80 in"),
    case(
        "-i * -b * -u 4321",
        "other 10.78.0.3:80 direct
         other 10.77.0.1:80 in
         proxy 10.78.0.3:80 out
         proxy 10.77.0.1:80 app
         other-gid 10.78.0.3:80 out",
    ),
    case(
        "-i * -u 4321 -g 8765",
        "other 10.78.0.3:80 direct
         other-gid 10.78.0.3:80 direct
         other-gid [fd78::3]:80 direct
         app 10.78.0.3:80 out
         proxy 10.78.0.3:80 out",
    ),
    case(
        "-i * -u 4321 -g 1337",
        "proxy 10.78.0.3:80 direct\nother 10.78.0.3:80 direct\nother-gid 10.78.0.3:80 out",
    ),
    case(
        "-i * -b * -p 25001 -z 25006",
        "app 10.78.0.3:80 out
         app [fd78::3]:80 out
         server 10.77.0.1:80 in
         server [fd77::1]:80 in
         proxy 10.77.0.1:80 in",
    ),
    case(
        "-m NONE -i *",
        "app 10.78.0.3:80 out
         server 10.77.0.1:80 app
         proxy 10.77.0.1:80 app
         proxy [fd77::1]:80 app",
    ),
    // A network of the loopback: 127.0.0.1 itself is still the application's own.
    case(
        "-i 127.1.0.0/16,10.78.0.0/24",
        "app 127.1.2.3:80 out
         app 127.0.0.1:80 app
         app 127.2.0.1:80 app
         app 10.78.0.3:80 out
         proxy 10.78.0.3:80 direct",
    ),
    case(
        "--redirect-dns --capture-all-dns",
        "app udp 10.78.0.3:53 dns
         app udp [fd78::3]:53 dns
         app 10.78.0.3:53 dns
         app [fd78::3]:53 dns
         root udp 10.78.0.3:53 dns
         app udp 127.0.0.1:53 dns
         app 127.0.0.1:53 dns
         app udp [::1]:53 dns
         proxy udp 10.78.0.3:53 direct
         proxy udp [fd78::3]:53 direct
         proxy-gid udp 10.78.0.3:53 direct
         proxy 10.78.0.3:53 direct
         app udp 10.78.0.3:54 direct
         app 10.78.0.3:80 direct",
    ),
    case(
        "-i * -b * --redirect-dns --capture-all-dns",
        "app udp 10.78.0.3:53 dns
         app 10.78.0.3:53 dns
         app 10.78.0.3:80 out
         app 10.77.0.1:80 app
         proxy 10.77.0.1:80 in
         proxy [fd77::1]:80 in
         proxy 10.77.0.1:15008 app
         server 10.77.0.1:80 in",
    ),
    case(
        "--redirect-dns --resolv-conf RESOLV4",
        "app udp 10.78.0.3:53 dns
         app 10.78.0.3:53 dns
         app udp [fd78::3]:53 direct
         app [fd78::3]:53 direct
         proxy udp 10.78.0.3:53 direct",
    ),
    case(
        "-i * --redirect-dns --resolv-conf RESOLV6",
        "app udp [fd78::3]:53 dns
         app [fd78::3]:53 dns
         app udp 10.78.0.3:53 direct
         app 10.78.0.3:53 out
         proxy udp [fd78::3]:53 direct",
    ),
    case(
        "--redirect-dns --capture-all-dns -o 53",
        "app udp 10.78.0.3:53 direct
         app 10.78.0.3:53 direct
         app udp [fd78::3]:53 direct",
    ),
    // What comes from a virtual machine goes out; to anywhere, the pod included.
    case(
        "-k eth0 -i * -b *",
        "gateway 10.99.0.7:80 out
         gateway [fd99::7]:80 out
         server 10.77.0.1:80 out
         app 10.78.0.3:80 out",
    ),
    case(
        "-k eth0 -i 10.99.0.0/24",
        "gateway 10.99.0.7:81 out
         gateway 10.77.0.1:80 app
         gateway [fd77::1]:80 app",
    ),
    case("-k eth0 -i 10.99.0.0/24 -b *", "gateway 10.99.0.7:81 out\ngateway 10.77.0.1:80 app"),
    nft(
        "-m TPROXY -i * -b *",
        "server 10.77.0.1:80 in
         server [fd77::1]:80 in
         server 10.77.0.1:15008 app
         app 10.78.0.3:80 out
         app [fd78::3]:80 out
         proxy 10.78.0.3:80 direct
         proxy 10.77.0.1:80 in
         proxy [fd77::1]:80 in
         proxy-gid 10.77.0.1:80 in
         proxy 127.0.0.1:80 app
         proxy@127.0.0.6 10.77.0.1:80 app
         proxy@::6 [fd77::1]:80 app
         app 10.77.0.1:80 app
         app [fd77::1]:80 app
         app 127.0.0.1:80 app",
    ),
    // Answers to what the application asks past the proxy come back.
    nft(
        "-m TPROXY -b *",
        "app 10.78.0.3:80 direct
         app [fd78::3]:80 direct
         app udp 10.78.0.3:53 direct
         server 10.77.0.1:80 in
         server [fd77::1]:81 in",
    ),
    nft(
        "-m TPROXY -b 81 -z 25006",
        "server 10.77.0.1:81 in
         server [fd77::1]:81 in
         server 10.77.0.1:80 app
         app 10.78.0.3:80 direct",
    ),
    nft(
        "-m TPROXY -b * -d 15020,80 -i 10.78.0.0/24 --redirect-dns --capture-all-dns",
        "server 10.77.0.1:15020 app
         server [fd77::1]:80 app
         server 10.77.0.1:81 in
         app 10.78.0.3:80 out
         app [fd78::3]:80 direct
         app udp 10.78.0.3:53 dns",
    ),
    nft(
        "-m TPROXY -b * -i * -c eth0",
        "server 10.77.0.1:80 app\napp 10.78.0.3:80 direct\nproxy 10.77.0.1:80 in",
    ),
    nft("-m TPROXY -b * -k eth0 -i 10.99.0.0/24", "gateway 10.99.0.7:80 out\ngateway 10.77.0.1:80 app"),
];

/// A line of the table.
fn read(line: &str) -> (Probe, Outcome) {
    let mut words: Vec<_> = line.split_whitespace().collect();
    let udp = words.get(1) == Some(&"udp");
    if udp {
        words.remove(1);
    }
    let [who, to, outcome] = words[..] else { panic!("{line}") };
    let outcome = match outcome {
        "direct" => Outcome::Direct,
        "app" => Outcome::App,
        "in" => Outcome::In,
        "out" => Outcome::Out,
        "dns" => Outcome::Dns,
        other => panic!("{line}: {other}"),
    };
    (Probe { who: who.to_owned(), udp, to: to.parse().unwrap_or_else(|e| panic!("{line}: {e}")) }, outcome)
}

/// Holds lines of the table.
pub fn check(world: &World, what: &str, lines: &[&str]) {
    for (probe, expected) in lines.iter().map(|line| read(line)) {
        assert_eq!(world.probe(&probe), expected, "{what}: {probe}");
    }
}

/// Installs each row's flags over the last row's, and dials.
fn hold(backend: &str) {
    let world = World::new(false);
    // A transparent socket takes what is redirected as well, but then REDIRECT alone would not be shown to work.
    let transparent = World::new(true);
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let resolv4 = file("4", "search here\nnameserver 10.78.0.3\nnameserver 127.0.0.53\n");
    let resolv6 = file("6", "nameserver fd78::3\n");
    let mut wrong = Vec::new();
    let mut held = 0;
    for case in CASES.iter().filter(|case| backend == "nft" || !case.nft_alone) {
        let world = if case.nft_alone { &transparent } else { &world };
        let flags = case.flags.replace("RESOLV4", &resolv4).replace("RESOLV6", &resolv6);
        let flags: Vec<_> = flags.split_whitespace().chain(["--backend", backend]).collect();
        world.init(&flags).unwrap_or_else(|e| panic!("{}: {e}", case.flags));
        for (probe, expected) in case.expected.lines().map(read) {
            let seen = world.probe(&probe);
            if seen != expected {
                wrong.push(format!("{:?}: {probe}: {seen:?}, not {expected:?}", case.flags));
            }
        }
        held += 1;
    }
    assert!(wrong.is_empty(), "{backend}: wrong of {held} combinations:\n{}", wrong.join("\n"));
    assert!(held >= 25, "{held} combinations");
    // And nothing of it when it is taken away.
    for world in [&world, &transparent] {
        world.init(&["--clean"]).unwrap();
        let lines = ["app 10.78.0.3:80 direct", "app udp 10.78.0.3:53 direct", "server [fd77::1]:80 app"];
        check(world, &format!("{backend}, taken away"), &lines);
    }
}

#[test]
fn nftables_captures_what_the_flags_say() {
    hold(BACKENDS[0]);
}

#[test]
fn iptables_over_nf_tables_captures_what_the_flags_say() {
    hold(BACKENDS[1]);
}

#[test]
fn iptables_over_the_old_tables_captures_what_the_flags_say() {
    hold(BACKENDS[2]);
}
