//! `weft init`: has the kernel send a pod's connections to its sidecar.
//!
//! Nobody configures the application: rules of the kernel's firewall in the pod's network namespace redirect what it sends to
//! the proxy's outbound port, and what comes in to its inbound port; where each was going, the proxy asks the kernel
//! (`original_dst`). This runs once, before the proxy, with rights that the proxy does not need; it stands apart from the
//! proxy, which does not know of it.
//!
//! Flags ([`args`]) are understood and checked ([`settings`]); from them come rules in no firewall's language ([`plan`],
//! [`rule`]), which [`nft`] or [`iptables`] write down and a program installs ([`backend`]); beside them an address and, for
//! TPROXY, policy routing ([`routes`]).

mod args;
mod backend;
mod iptables;
mod nft;
mod plan;
mod program;
mod routes;
mod rule;
mod settings;
mod steps;

use anyhow::{Context, ensure};

pub use args::{BackendArg, InitArgs, Output};

use self::backend::Backend;
use self::routes::{Change, Route};
use self::settings::Settings;
use self::steps::Step;

/// Installs the redirection, prints it, or takes it away.
///
/// # Errors
///
/// A flag is wrong; a program, a capability or a module of the kernel is missing. Then nothing has been changed.
pub fn main(args: &InitArgs) -> anyhow::Result<()> {
    let settings = Settings::new(args)?;
    ensure!(
        args.dry_run || args.output == Output::Text,
        "--output json says how --dry-run prints; give both, or neither"
    );
    if args.clean {
        return clean();
    }
    let rules = plan::plan(&settings);
    let backend = Backend::choose(args.backend).or_else(|e| {
        // To print rules no program is needed.
        if args.dry_run { Ok(Backend::Nft) } else { Err(e) }
    })?;
    let ipv6 = has_ipv6();
    let steps = backend.steps(&rules, ipv6)?;
    let routes = wanted_routes(&settings, ipv6);
    if settings.captures_nothing() {
        eprintln!(
            "nothing is captured: -b says which inbound ports are, -i which networks ('*' is all), --redirect-dns DNS"
        );
    }
    if args.dry_run {
        let steps: Vec<_> = routes.into_iter().map(Step::route).chain(steps).collect();
        print!("{}", steps::print(backend.name(), &steps, args.output));
        return Ok(());
    }
    ensure!(program::may_change_the_network(), "{}", program::CAPABILITIES);
    backend.check(&rules, ipv6).context("nothing was changed")?;
    install(backend, &rules, &routes, ipv6)?;
    println!("installed by {}", backend.name());
    Ok(())
}

/// Address and routes first, because the rules need them; then the rules; then what others left goes.
fn install(backend: Backend, rules: &rule::Ruleset, routes: &[Route], ipv6: bool) -> anyhow::Result<()> {
    let mut made = Vec::new();
    let outcome = routes
        .iter()
        .try_for_each(|route| {
            if route.apply(Change::Add)? {
                made.push(*route);
            }
            Ok(())
        })
        .and_then(|()| backend.install(rules, ipv6));
    if let Err(error) = outcome {
        // The error that stopped it is the one to tell.
        made.into_iter().rev().for_each(|route| drop(route.apply(Change::Remove)));
        return Err(error.context("nothing was changed"));
    }
    let unwanted = all_routes().filter(|route| !routes.contains(route));
    unwanted.map(|route| route.apply(Change::Remove)).collect::<anyhow::Result<Vec<_>>>()?;
    for error in backend.clean_others(ipv6) {
        eprintln!(
            "what another firewall may have of an earlier redirection could not be taken away: {error:#}"
        );
    }
    Ok(())
}

fn clean() -> anyhow::Result<()> {
    ensure!(program::may_change_the_network(), "{}", program::CAPABILITIES);
    Backend::clean_all(has_ipv6())?;
    all_routes().try_for_each(|route| route.apply(Change::Remove).map(drop))?;
    println!("taken away");
    Ok(())
}

/// Every route and address that was ever made here, in the order in which they can go.
fn all_routes() -> impl Iterator<Item = Route> {
    Route::of_tproxy(true).into_iter().rev().chain([Route::PassthroughAddress])
}

fn wanted_routes(settings: &Settings, ipv6: bool) -> Vec<Route> {
    // Where the loopback takes no IPv6, the kernel takes no route to it either, and none is needed.
    let ipv6 = ipv6 && !ipv6_is_off_on_loopback();
    let mut routes = Vec::new();
    if ipv6 {
        routes.push(Route::PassthroughAddress);
    }
    if plan::tproxy(settings) {
        routes.extend(Route::of_tproxy(ipv6));
    }
    routes
}

/// Whether the kernel speaks IPv6.
fn has_ipv6() -> bool {
    std::path::Path::new("/proc/net/if_inet6").exists()
}

/// Whether the loopback takes no address of IPv6.
fn ipv6_is_off_on_loopback() -> bool {
    let setting = std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
    setting.is_ok_and(|text| text.trim() == "1")
}
