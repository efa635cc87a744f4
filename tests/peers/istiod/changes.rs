//! Changes while requests flow, and istiod going and coming.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use super::shop::{Shop, WEB};
use crate::programs::{until, until_or};

/// Asks without a pause while something is done; gives what went wrong, and how often was asked.
fn meanwhile(shop: &Shop<'_>, act: impl FnOnce()) -> (Vec<String>, usize) {
    let (done, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failed = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut failed = Vec::new();
            while !done.load(Relaxed) {
                let seen = shop.pod("client").get(WEB, "web", "/flow", &[]);
                asked.fetch_add(1, Relaxed);
                if seen.status != 200 {
                    failed.push(format!("{seen:?}"));
                }
            }
            failed
        });
        until("requests flow", || asked.load(Relaxed) > 5);
        let acted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        done.store(true, Relaxed);
        let failed = asking.join().unwrap();
        acted.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        failed
    });
    (failed, asked.load(Relaxed))
}

fn split(shop: &Shop<'_>, first: u8) {
    let second = 100 - first;
    shop.cluster.server.apply(&format!(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: web, namespace: shop}}
spec:
  hosts: [web]
  http:
  - name: split-{first}
    route:
    - {{destination: {{host: web, subset: v1}}, weight: {first}, headers: {{response: {{set: {{x-split: '{first}'}}}}}}}}
    - {{destination: {{host: web, subset: v2}}, weight: {second}, headers: {{response: {{set: {{x-split: '{first}'}}}}}}}}
"
    ));
}

/// Whether all requests go by this split.
fn splits(shop: &Shop<'_>, first: u8) -> bool {
    let wanted = first.to_string();
    shop.pod("client").get(WEB, "web", "/split", &[]).field("x-split") == Some(&wanted)
}

/// Versions, subsets, their endpoints and who may ask change; no request fails.
pub fn are_followed_without_a_failed_request(shop: &Shop<'_>) {
    let (failed, asked) = meanwhile(shop, || {
        for first in [100, 0, 50] {
            split(shop, first);
            until("the split is followed", || splits(shop, first));
        }
        for mode in ["STRICT", "PERMISSIVE", "STRICT"] {
            shop.cluster.server.apply(&format!(
                "{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: default, namespace: shop}}, \
                 spec: {{mtls: {{mode: {mode}}}}}}}"
            ));
            let refused = || shop.pod("stranger").get("10.79.1.11:8080", "web", "/", &[]).status == 0;
            until("the mode is followed", || refused() == (mode == "STRICT"));
        }
        let patch = |ready: bool| {
            let patch =
                format!(r#"[{{"op":"replace","path":"/endpoints/1/conditions/ready","value":{ready}}}]"#);
            shop.cluster.server.kubectl(&[
                "-n",
                "shop",
                "patch",
                "endpointslice",
                "web-1",
                "--type=json",
                "-p",
                &patch,
            ]);
        };
        split(shop, 100);
        until("the split is followed", || splits(shop, 100));
        let second = || {
            shop.pod("client")
                .page("/clusters")
                .contains("outbound|80|v2|web.shop.svc.cluster.local::10.79.1.12:8080::")
        };
        patch(false);
        until("the second version is gone", || !second());
        patch(true);
        until("the second version is back", second);
    });
    assert!(failed.is_empty(), "{} of {asked} failed: {:#?}", failed.len(), &failed[..failed.len().min(3)]);
}

/// Requests flow on without istiod, and all proxies follow it again when it is back.
pub fn are_missed_and_made_up_for(shop: &mut Shop<'_>) {
    let connected = |shop: &Shop<'_>| shop.proxies().all(|pod| shop.cluster.synced(&pod.id()).is_some());
    assert!(connected(shop));
    shop.cluster.kill();
    let (failed, _) = meanwhile(shop, || {
        // What is changed now, nobody hears.
        split(shop, 0);
        until("it is missed", || {
            shop.pod("client").page("/stats").contains("control_plane.connected_state: 0")
        });
        assert!(splits(shop, 100));
    });
    assert!(failed.is_empty(), "{failed:#?}");
    // One that starts anew has its certificate and its configuration from before.
    shop.restart("client");
    assert!(splits(shop, 100), "{}", shop.pod("client").log());
    shop.cluster.restart();
    let (failed, _) = meanwhile(shop, || {
        until_or("the split is followed", || shop.pod("client").log(), || splits(shop, 0));
        until("all are connected", || connected(shop));
    });
    assert!(failed.is_empty(), "{failed:#?}");
}
