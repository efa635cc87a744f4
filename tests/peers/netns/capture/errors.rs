//! What is missing is named, with what to do; and packets that belong to nothing.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Instant;

use socket2::{Domain, Protocol, Socket, Type};

use super::super::hosts::{CLIENT, Net, SERVER};
use super::{BACKENDS, SILENCE, World, init_on, outcome};
use crate::programs::peer;

#[test]
fn without_the_capability_it_says_so() {
    let net = Net::new();
    for arguments in [&["-i", "*"][..], &["--clean"]] {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-net_admin", env!("CARGO_BIN_EXE_weft"), "init"]).args(arguments);
        let error = outcome(net.client.command(&command)).unwrap_err();
        assert!(error.contains("CAP_NET_ADMIN") && error.contains("NET_ADMIN and NET_RAW"), "{error}");
    }
    let mut dry = Command::new("setpriv");
    dry.args(["--bounding-set", "-net_admin", env!("CARGO_BIN_EXE_weft"), "init", "-n", "-i", "*"]);
    assert!(outcome(net.client.command(&dry)).unwrap().contains("table inet weft"));
}

/// Runs `weft init` where some programs are not to be found.
fn without(net: &Net, hidden: &[&str], arguments: &[&str]) -> Result<String, String> {
    let mut script = String::new();
    for name in hidden {
        let file = std::fs::canonicalize(peer(name)).unwrap();
        script += &format!("mount --bind /dev/null {} && ", file.display());
    }
    script += "exec \"$@\"";
    // A mount namespace of its own is part of `ip netns exec`.
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_weft"), "init"]).args(arguments);
    outcome(net.client.command(&command))
}

#[test]
fn iptables_is_taken_where_there_is_no_nft_and_none_of_them_is_an_error() {
    let net = Net::new();
    let (nft, over, legacy) = ("WEFT_NFT", "WEFT_IPTABLES_NFT", "WEFT_IPTABLES_LEGACY");
    assert_eq!(without(&net, &[], &["-i", "*"]).unwrap(), "installed by nft\n");
    assert_eq!(without(&net, &[nft, over], &["-i", "*"]).unwrap(), "installed by iptables-legacy\n");
    let by_iptables = without(&net, &[nft], &["-i", "*"]).unwrap();
    assert!(by_iptables.starts_with("installed by iptables"), "{by_iptables}");
    let error = without(&net, &[nft, over, legacy], &["-i", "*"]).unwrap_err();
    assert!(
        error.contains("neither nft nor iptables-restore") && error.contains("install nftables"),
        "{error}"
    );
    let error = without(&net, &[nft, over, legacy], &["--clean"]).unwrap_err();
    assert!(error.contains("neither nft nor iptables-restore"), "{error}");
    let error = without(&net, &[nft], &["-i", "*", "--backend", "nft"]).unwrap_err();
    assert!(error.contains("there is no nft") && error.contains("--backend iptables"), "{error}");
    let dry = without(&net, &[nft, over, legacy], &["-n", "-i", "*"]).unwrap();
    assert!(dry.contains("table inet weft"), "{dry}");
}

#[test]
fn flags_that_capture_nothing_are_doubted() {
    let net = Net::new();
    let mut command = crate::programs::weft();
    command.args(["init", "-u", "1"]);
    let output = net.client.command(&command).output().unwrap();
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("nothing is captured: -b says"), "{said}");
}

/// Sends a packet that ends a connection which was never there; gives whether the kernel answers with a reset.
fn is_reset(from: IpAddr, to: SocketAddr) -> bool {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    let (IpAddr::V4(source), IpAddr::V4(target)) = (from, to.ip()) else { unreachable!() };
    let mut segment = [0_u8; 20];
    segment[..2].copy_from_slice(&40_000_u16.to_be_bytes());
    segment[2..4].copy_from_slice(&to.port().to_be_bytes());
    // Five words of header, FIN alone.
    (segment[12], segment[13]) = (5 << 4, 1);
    let pseudo = [&source.octets()[..], &target.octets(), &[0, 6, 0, 20], &segment].concat();
    let sum: u32 = pseudo.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    socket.send(&segment).unwrap();
    let end = Instant::now() + SILENCE;
    while Instant::now() < end {
        let mut packet = [0; 200];
        match (&socket).read(&mut packet) {
            // The packet begins with its 20 bytes of IP; then ports, and the flags.
            Ok(40..) if packet[20..22] == to.port().to_be_bytes() && packet[33] & 4 != 0 => return true,
            Ok(_) => {}
            Err(e) => assert!(matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{e}"),
        }
    }
    false
}

#[test]
fn packets_of_no_connection_are_dropped_if_that_is_asked_for() {
    let world = World::new(false);
    for backend in BACKENDS {
        for (flags, reset) in
            [("-b 80", true), ("-b 80 --drop-invalid", false), ("-b 80 --drop-invalid -c eth0", true)]
        {
            let flags: Vec<_> = flags.split(' ').chain(["--backend", backend]).collect();
            init_on(&world.net.client, &flags).unwrap();
            let seen = world.net.server.inside(|| is_reset(SERVER, SocketAddr::new(CLIENT, 9)));
            assert_eq!(seen, reset, "{flags:?}");
        }
    }
}
