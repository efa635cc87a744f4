//! What is installed, as the kernel tells it: the same after a second run, the last run's after a third, nothing when it is
//! taken away; and others' rules as they were.

use std::process::Command;

use serde_json::Value;

use super::super::hosts::{Host, Net};
use super::{BACKENDS, init_on, outcome};

/// Everything that the flags can ask for.
const ALL: &str = "-i * -b * -d 15020,15021 -x 10.9.0.0/16,fd99::/64 -q 443,444 -o 22,23 -c eth5,eth6 -k vm0,vm1 --drop-invalid \
                   --redirect-dns --capture-all-dns";
const FEW: &str = "-b 80 -i 10.0.0.0/8 -u 4321";

fn run_on(host: &Host, command: &str) -> String {
    let mut words = command.split(' ');
    let mut program = Command::new(words.next().unwrap());
    program.args(words);
    // A table without routes is an error to some versions.
    outcome(host.command(&program)).unwrap_or_default()
}

/// What of a network namespace `weft init` may change, without counters and times, and whatever the order in which chains
/// were made.
fn state(host: &Host) -> String {
    let commands = [
        "nft list ruleset inet",
        "iptables-nft-save",
        "ip6tables-nft-save",
        "iptables-legacy-save",
        "ip6tables-legacy-save",
        "ip -4 rule",
        "ip -6 rule",
        "ip -4 route show table 133",
        "ip -6 route show table 133",
        "ip -o -6 addr show dev lo",
    ];
    let one = |command: &str| {
        let text = run_on(host, command);
        let lines =
            text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(" [").next().unwrap());
        let mut tables: Vec<Vec<&str>> = vec![vec![]];
        for line in lines {
            if line.starts_with('*') {
                tables.push(vec![]);
            }
            tables.last_mut().unwrap().push(line);
        }
        for table in &mut tables {
            // A chain's rules stay in their order.
            table.sort_by_key(|line| match line.as_bytes().first() {
                Some(b':' | b'-') => line.split(' ').take(2).collect(),
                _ => String::new(),
            });
        }
        tables.sort();
        format!("{command}:\n{}", tables.concat().join("\n"))
    };
    commands.map(one).join("\n")
}

/// What of a state is a rule, a route or an address of ours: what the kernel's own empty tables say is left out.
fn ours(state: &str) -> Vec<&str> {
    let of_ours = ["-A ", ":ISTIO_", "table inet weft", "jump", "0x539", "::6", "local default"];
    state.lines().filter(|line| of_ours.iter().any(|word| line.contains(word))).collect()
}

fn init(host: &Host, flags: &str, backend: &str) {
    let flags: Vec<_> = flags.split_whitespace().chain(["--backend", backend]).collect();
    init_on(host, &flags).unwrap_or_else(|e| panic!("{backend}: {flags:?}: {e}"));
}

#[test]
fn a_second_run_changes_nothing_and_other_flags_replace_the_first() {
    for backend in BACKENDS {
        let net = Net::new();
        let pod = &net.client;
        let all = if backend == "nft" { [ALL, "-m TPROXY"].join(" ") } else { ALL.to_owned() };
        init(pod, &all, backend);
        let first = state(pod);
        assert!(ours(&first).len() > 10, "{first}");
        let listed = run_on(pod, "nft list ruleset");
        init(pod, &all, backend);
        assert_eq!(state(pod), first, "{backend}: twice");
        assert_eq!(run_on(pod, "nft list ruleset"), listed, "{backend}: twice");
        init_on(pod, &["--clean"]).unwrap();
        init(pod, FEW, backend);
        let few = state(pod);
        init(pod, &all, backend);
        assert_eq!(state(pod), first, "{backend}: replaced");
        init(pod, FEW, backend);
        assert_eq!(state(pod), few, "{backend}: replaced again");
    }
}

#[test]
fn nothing_is_left_when_it_is_taken_away() {
    let net = Net::new();
    let pod = &net.client;
    let before = state(pod);
    init(pod, &format!("{ALL} -m TPROXY"), "nft");
    init_on(pod, &["--clean"]).unwrap();
    assert_eq!(state(pod), before);
    init_on(pod, &["--clean"]).unwrap();
    assert_eq!(state(pod), before, "where nothing is");
    for backend in BACKENDS {
        init(pod, ALL, backend);
        assert!(!ours(&state(pod)).is_empty());
        init_on(pod, &["--clean"]).unwrap();
        assert_eq!(ours(&state(pod)), [""; 0], "{backend}");
    }
}

#[test]
fn another_backend_replaces_what_the_first_one_installed() {
    let net = Net::new();
    let pod = &net.client;
    let is_in = |state: &str| {
        let (nf_tables, legacy) = state.split_once("\niptables-legacy-save:").unwrap();
        let [over_nf_tables, legacy] = [nf_tables, legacy].map(|text| text.contains("-A ISTIO_OUTPUT"));
        (state.contains("table inet weft"), over_nf_tables, legacy)
    };
    for (backend, expected) in [
        ("nft", (true, false, false)),
        ("iptables-nft", (false, true, false)),
        ("iptables-legacy", (false, false, true)),
        ("iptables", (false, true, false)),
        ("nft", (true, false, false)),
        ("iptables-legacy", (false, false, true)),
    ] {
        init(pod, ALL, backend);
        let state = state(pod);
        assert_eq!(is_in(&state), expected, "{backend}: {state}");
    }
}

/// What istio-iptables leaves, and what an administrator has beside it.
const ISTIOS: &str = "*nat
:ISTIO_INBOUND - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
:ISTIO_REDIRECT - [0:0]
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A PREROUTING -p tcp --dport 9 -j RETURN
-A OUTPUT -p tcp --dport 9 -j RETURN
-A OUTPUT -p tcp -j ISTIO_OUTPUT
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -o lo -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
COMMIT
*mangle
:ISTIO_DIVERT - [0:0]
-A PREROUTING -p tcp -m mark --mark 1 -j ISTIO_DIVERT
-A ISTIO_DIVERT -j MARK --set-mark 1337
COMMIT
";

#[test]
fn istios_rules_are_taken_away_as_well_and_nobody_elses() {
    for form in ["nft", "legacy"] {
        let net = Net::new();
        let pod = &net.client;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("rules");
        std::fs::write(&file, ISTIOS).unwrap();
        pod.nft("table inet other { chain out { type filter hook output priority 0; tcp dport 9 accept } }");
        pod.ip("rule add fwmark 7 lookup 77");
        let (foreign, load) = (state(pod), format!("iptables-{form}-restore --noflush {}", file.display()));
        let alone = |state: &str| {
            let kept = ["chain out", "tcp dport 9 accept", "fwmark 0x7 lookup 77"];
            kept.iter().all(|word| state.contains(word)) && {
                let nine =
                    state.matches("dport 9 return").count() + state.matches("--dport 9 -j RETURN").count();
                nine == 2 && !state.contains("ISTIO_") && !state.contains("0x539")
            }
        };
        assert!(foreign.contains("tcp dport 9 accept"));
        run_on(pod, &load);
        for _ in 0..2 {
            pod.ip("rule add fwmark 1337 lookup 133");
        }
        pod.ip("route add local default dev lo table 133");
        assert!(state(pod).contains("ISTIO_REDIRECT"), "{form}: {}", state(pod));
        init_on(pod, &["--clean"]).unwrap();
        assert!(alone(&state(pod)), "{form}: {}", state(pod));
        // The same by an installation with each backend, whose own rules then go with the next.
        for backend in BACKENDS {
            run_on(pod, "iptables-nft -t nat -F OUTPUT");
            run_on(pod, "iptables-legacy -t nat -F OUTPUT");
            run_on(pod, "iptables-nft -t nat -F PREROUTING");
            run_on(pod, "iptables-legacy -t nat -F PREROUTING");
            run_on(pod, &load);
            init(pod, FEW, backend);
            init_on(pod, &["--clean"]).unwrap();
            assert!(alone(&state(pod)), "{form}, {backend}: {}", state(pod));
        }
    }
}

#[test]
fn a_dry_run_changes_nothing_and_says_what_a_run_does() {
    for backend in BACKENDS {
        let net = Net::new();
        let pod = &net.client;
        let before = state(pod);
        let all = if backend == "nft" { [ALL, "-m TPROXY"].join(" ") } else { ALL.to_owned() };
        let flags: Vec<_> = all.split_whitespace().chain(["--backend", backend, "--dry-run"]).collect();
        let text = init_on(pod, &flags).unwrap();
        let json = init_on(pod, &[&flags[..], &["--output", "json"]].concat()).unwrap();
        assert_eq!(state(pod), before);

        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["backend"], backend);
        for step in json["steps"].as_array().unwrap() {
            let words: Vec<_> =
                step["command"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
            assert!(text.contains(&words.join(" ")), "{words:?} in {text}");
            assert!(text.contains(step["input"].as_str().unwrap_or_default()), "{step} in {text}");
        }

        // A shell that runs what was printed does what a run does.
        let mut shell = Command::new("sh");
        shell.args(["-e", "-c", &text]);
        outcome(pod.command(&shell)).unwrap_or_else(|e| panic!("{e}: {text}"));
        let by_hand = state(pod);
        init_on(pod, &["--clean"]).unwrap();
        init(pod, &all, backend);
        assert_eq!(state(pod), by_hand, "{backend}");
        let installed = state(pod);
        init_on(pod, &["-n", "-b", "80", "--backend", backend]).unwrap();
        assert_eq!(state(pod), installed);
    }
}

#[test]
fn what_is_refused_changes_nothing() {
    let net = Net::new();
    let pod = &net.client;
    init(pod, ALL, "iptables-nft");
    let before = state(pod);
    for (flags, words) in [
        ("-i 10.0.0.0/33", "10.0.0.0/33"),
        ("-b 99999", "99999"),
        ("-m MAYBE", "REDIRECT, TPROXY, NONE"),
        ("-m TPROXY -b * --backend iptables", "TPROXY is installed by nftables only"),
        ("-m TPROXY -b * --backend iptables-legacy --dry-run", "TPROXY is installed by nftables only"),
        ("--redirect-dns --resolv-conf /nowhere", "/nowhere"),
        ("--output json -b *", "--dry-run"),
    ] {
        let error = init_on(pod, &flags.split(' ').collect::<Vec<_>>()).expect_err(flags);
        assert!(error.contains(words), "{flags}: {error}");
        assert_eq!(state(pod), before, "{flags}");
    }
}

/// Programs that look at rules as the real ones do and then fail to install them.
#[test]
fn a_run_that_fails_half_way_leaves_what_was_there() {
    for (backend, program) in [
        ("nft", "nft"),
        ("iptables-nft", "ip6tables-nft-restore"),
        ("iptables-legacy", "ip6tables-legacy-restore"),
    ] {
        let net = Net::new();
        let pod = &net.client;
        init(pod, FEW, backend);
        pod.ip("-6 addr del ::6/128 dev lo");
        let before = state(pod);
        let directory = tempfile::tempdir().unwrap();
        let fake = directory.path().join(program);
        let real = format!("/usr/sbin/{program}");
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *--test*|*-c*) exec {real} \"$@\";; esac\necho out of order >&2\nexit 1\n"
        );
        std::fs::write(&fake, script).unwrap();
        std::fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let path = format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", directory.path().display());
        let mut command = Command::new("env");
        command.args([&path, env!("CARGO_BIN_EXE_weft"), "init", "--backend", backend]);
        command.args(ALL.split_whitespace());
        if backend == "nft" {
            command.args(["-m", "TPROXY"]);
        }
        let error = outcome(pod.command(&command)).expect_err(backend);
        assert!(error.contains("nothing was changed") && error.contains("out of order"), "{error}");
        let strip = |state: String| {
            // The kernel's own empty tables come with the first look.
            ours(&state).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(strip(state(pod)), strip(before), "{backend}");
    }
}
