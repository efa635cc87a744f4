//! The root's key is taken away for good. What the mesh needs from day to day goes on without it, and another intermediate is
//! signed where the key is, under traffic.

use std::time::Duration;

use weft::demo::check::apps::QUIET;
use weft::demo::check::observe::credentials;
use weft::demo::check::observe::http::Request;
use weft::demo::check::observe::tls::{Outcome, dial};
use weft::up::{Part, Signal};
use weft_certs::inspect;
use weft_control::ca::store::{ROOT_CERTIFICATE, ROOT_KEY};

use super::{Traffic, pair};
use crate::support::authority::{ca, ca_output, certs};
use crate::support::mesh::{alone, runtime};
use crate::support::{eventually, stderr, stdout, weft};

const RATE: u64 = 100;

#[test]
fn the_roots_key_goes_offline_and_leaves_revocations_and_a_new_intermediate_do_without_it_under_traffic() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = pair(107, RATE);
        let mesh = pair.start().await;
        let at = |name: &str| pair.path().join(name).to_str().unwrap().to_owned();
        let (root, request, signed) = (at("root.pem"), at("request.pem"), at("signed.pem"));
        let before = certs(&mesh, "front-1");
        let traffic = Traffic::start(&mesh, RATE).await;

        assert_eq!(ca(&pair, &["take-root-offline", &root])["offline"], true);
        assert!(!pair.state_dir().join(ROOT_KEY).exists());
        assert_eq!(ca(&pair, &["status"])["rootKeyOffline"], true);
        // A backup does not bring it back, and nothing that needs it is promised.
        let backup = at("backup");
        ca(&pair, &["backup", &backup]);
        assert!(!std::fs::read_to_string(&backup).unwrap().contains(ROOT_KEY));
        for (command, words) in [
            (&["rotate-intermediate"][..], "request-intermediate"),
            (&["take-root-offline", &at("again")], "offline already"),
        ] {
            let refused = ca_output(&pair, command);
            assert!(!refused.status.success() && stderr(&refused).contains(words), "{}", stderr(&refused));
        }

        // A control plane that starts without it issues...
        mesh.stop(&Part::Control, Signal::KILL).await.unwrap();
        mesh.restart(&Part::Control).unwrap();
        let restarted = certs(&mesh, "front-1").0;
        eventually("leaves are replaced", || {
            let now = certs(&mesh, "front-1");
            now.0 != restarted && now.0 != before.0 && now.1 == before.1
        });

        // Another intermediate: the request goes to where the key is, and what comes back signs. No control plane is asked there.
        ca(&pair, &["request-intermediate", &request]);
        let output = weft(&["ca", "sign-intermediate", "--root", &root, &request, &signed]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(ca(&pair, &["take-intermediate", &signed])["signs"], true);
        eventually("both have leaves of the new intermediate", || {
            ["front-1", "back-1"].iter().all(|w| certs(&mesh, w).1 != before.1)
        });

        // ... and revokes, under that one.
        let state = pair.state_dir();
        let token = weft(&[
            "token",
            "create",
            "--state-dir",
            state.to_str().unwrap(),
            "--namespace",
            "pair",
            "--service-account",
            "observer",
        ]);
        let certificate = state.join(ROOT_CERTIFICATE);
        let secure = mesh.control().secure;
        let observer = credentials::from_mesh(secure, &certificate, stdout(&token).trim()).await.unwrap();
        assert_eq!(observer.chain.len(), 3, "leaf, intermediate, root");
        let back = mesh.workload("back-1").unwrap().inbound[0];
        let taken = || async {
            let outcome = dial(back, Some(&observer), &Request::get("observer", QUIET)).await.unwrap();
            matches!(outcome, Outcome::Answered(_, answer) if answer.status() == 200)
        };
        assert!(taken().await);
        let serial = inspect::facts(&observer.chain[0]).unwrap().serial;
        assert_eq!(ca(&pair, &["revoke", &serial])["new"], true);
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while taken().await {
            assert!(std::time::Instant::now() < deadline, "the revoked certificate is still taken");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        println!("{}", traffic.unharmed().await);
        let status = ca(&pair, &["status"]);
        assert_eq!((&status["intermediateRotations"], &status["rootRotations"]), (&1.into(), &0.into()));
        let expected = std::fs::read(&signed).unwrap();
        let expected = inspect::facts(&weft_certs::pem::certificates(&expected).unwrap()[0]).unwrap();
        for workload in ["front-1", "back-1"] {
            let now = certs(&mesh, workload);
            assert_eq!((&now.1, &now.2), (&expected.serial, &before.2), "under the same root");
        }
        mesh.shutdown().await.unwrap();
    });
}
