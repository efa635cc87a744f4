//! Wires that lose a part of what is sent, each way: TCP makes up for it, and where it cannot, callers are told in time.

use std::time::Duration;

use super::EcoTrack;
use crate::netns::hosts::Host;

/// Whom it befalls.
const LOSSY: &str = "product-service";

fn lose(host: &Host, percent: u32) {
    let drop = format!("numgen random mod 100 < {percent} drop");
    host.nft(&format!(
        "table inet loss {{
            chain in {{ type filter hook prerouting priority -500; iifname \"eth0\" {drop} }}
            chain out {{ type filter hook postrouting priority 500; oifname \"eth0\" {drop} }}
        }}"
    ));
}

#[test]
#[ignore = "two minutes of chance; .ci/long runs it"]
fn what_is_lost_on_the_way_is_sent_again_and_nobody_waits_without_an_end() {
    let ecotrack = EcoTrack::start();
    ecotrack.recovers("at rest");
    for percent in [1, 5, 10] {
        lose(&ecotrack.hosts[LOSSY], percent);
        ecotrack.browses(&format!("{percent} of 100 are lost"), 20);
        ecotrack.hosts[LOSSY].nft("delete table inet loss");
    }

    // Of ten packets three, each way: half of what is sent arrives and is acknowledged. Much is late, and some may fail, but
    // all is answered, and whoever has nothing to do with it does not notice.
    lose(&ecotrack.hosts[LOSSY], 30);
    let mut statuses = Vec::new();
    for number in 0..12 {
        let (status, took) = ecotrack.browse();
        // 500 is the application's own word, when its database was out of reach for too long.
        assert!(
            ["200", "500", "503", "504"].contains(&&*status),
            "request {number}: {status}\n{}",
            ecotrack.story()
        );
        // curl waits for twenty.
        assert!(took < Duration::from_secs(20), "request {number} took {took:?}");
        statuses.push(status);
        let users = super::service("user-service");
        let said = super::http::ask(
            &ecotrack.hosts["order-service"],
            users,
            "GET /api/users",
            "host: user-service.ecotrack:8080\r\n",
            "",
        );
        assert_eq!(said.status(), 200, "beside it, at request {number}: {said:?}");
    }
    let served = statuses.iter().filter(|status| *status == "200").count();
    println!("with 30 of 100 lost each way {served} of {} were served", statuses.len());
    assert!(served >= 3, "{statuses:?}");
    ecotrack.hosts[LOSSY].nft("delete table inet loss");
    ecotrack.recovers("nothing is lost any more");
    ecotrack.browses("nothing is lost any more", 10);
}
