//! The client with a signer of the test's, by the paused clock.

use std::sync::Mutex;

use super::*;
use crate::identity::workload::testing::{Authority, id, start};

/// Signs for `life`, unless it is away.
struct Fake {
    authority: Arc<Authority>,
    clock: Clock,
    script: Arc<Mutex<Script>>,
}

struct Script {
    /// What is signed.
    name: SpiffeId,
    /// How the next requests end; none: well.
    failing: bool,
    hanging: bool,
    requests: u32,
}

const LIFE: Duration = Duration::from_secs(8);

impl Signer for Fake {
    async fn sign(&self, csr: String, life: Option<Duration>) -> Result<Vec<String>, IdentityError> {
        let (name, failing, hanging) = {
            let mut script = self.script.lock().unwrap();
            script.requests += 1;
            (script.name.clone(), script.failing, script.hanging)
        };
        if hanging {
            std::future::pending::<()>().await;
        }
        if failing {
            return Err(IdentityError::Answer("away".into()));
        }
        Ok(self.authority.sign(&csr, &name, (self.clock)(), life.unwrap_or(LIFE)))
    }
}

/// Wall time that moves with tokio's paused clock.
fn clock() -> Clock {
    let base = tokio::time::Instant::now();
    Arc::new(move || start() + base.elapsed())
}

struct World {
    authority: Arc<Authority>,
    script: Arc<Mutex<Script>>,
    clock: Clock,
}

impl World {
    fn new() -> Self {
        let script = Script { name: id(), failing: false, hanging: false, requests: 0 };
        Self { authority: Arc::new(Authority::new()), script: Arc::new(Mutex::new(script)), clock: clock() }
    }

    fn client(&self, state_dir: Option<PathBuf>) -> IdentityClient<Fake> {
        self.client_with(state_dir, self.clock.clone(), None)
    }

    /// One whose own clock is another, and that asks for this life.
    fn client_with(
        &self,
        state_dir: Option<PathBuf>,
        clock: Clock,
        lifetime: Option<Duration>,
    ) -> IdentityClient<Fake> {
        let fake = Fake {
            authority: self.authority.clone(),
            clock: self.clock.clone(),
            script: self.script.clone(),
        };
        let config = IdentityConfig { id: id(), lifetime, state_dir, automatic: true };
        IdentityClient::with_signer(config, clock, |_| fake)
    }

    fn set(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }
}

async fn next(current: &mut Current) -> Option<Arc<WorkloadCertificate>> {
    next_within(Duration::from_secs(60), current).await
}

async fn next_within(limit: Duration, current: &mut Current) -> Option<Arc<WorkloadCertificate>> {
    tokio::time::timeout(limit, current.changed()).await.expect("nothing changed").unwrap();
    current.borrow_and_update().clone()
}

#[tokio::test(start_paused = true)]
async fn a_life_of_seconds_is_renewed_at_its_half_again_and_again() {
    let world = World::new();
    let client = world.client(None);
    let (mut current, status) = (client.current(), client.status());
    tokio::spawn(client.run());
    let mut last = next(&mut current).await.unwrap();
    for _ in 0..5 {
        let new = next(&mut current).await.unwrap();
        let age = (new.validity().issued - last.validity().issued).as_seconds_f64();
        // Certificates end at a whole second, so that a life may be almost a second shorter than what was asked for.
        let life = (last.validity().expires - last.validity().issued).as_seconds_f64();
        assert!((7.0..=8.0).contains(&life), "{life} s of 8");
        assert!((age - life / 2.0).abs() < 0.1, "renewed after {age} s of {life}");
        assert_ne!(new.key().secret_pkcs8_der(), last.key().secret_pkcs8_der(), "a new key each time");
        last = new;
    }
    assert_eq!(status.borrow().rotations, 5);
}

#[tokio::test(start_paused = true)]
async fn while_the_signer_is_away_the_old_one_serves_until_it_expires_and_no_longer() {
    for hanging in [false, true] {
        let world = World::new();
        let client = world.client(None);
        let (mut current, status) = (client.current(), client.status());
        tokio::spawn(client.run());
        let first = next(&mut current).await.unwrap();
        world.set(|s| if hanging { s.hanging = true } else { s.failing = true });
        assert!(next(&mut current).await.is_none());
        let late = ((world.clock)() - first.validity().expires).as_seconds_f64();
        assert!((0.0..1.0).contains(&late), "withdrawn {late} s after its expiry");
        let failures = status.borrow().failures;
        assert!(failures >= if hanging { 2 } else { 5 }, "{failures} attempts");
        assert!(status.borrow().last_error.is_some());
        // It comes back, and all is well.
        world.set(|s| (s.hanging, s.failing) = (false, false));
        assert!(next(&mut current).await.is_some());
        assert!(status.borrow().last_error.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_for_another_service_account_is_refused() {
    let world = World::new();
    world.set(|s| s.name = "spiffe://cluster.local/ns/ecotrack/sa/admin".parse().unwrap());
    let client = world.client(None);
    let (current, mut status) = (client.current(), client.status());
    tokio::spawn(client.run());
    status.changed().await.unwrap();
    assert!(current.borrow().is_none());
    let error = status.borrow().last_error.clone().unwrap();
    assert!(error.contains("sa/admin") && error.contains("token"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_restart_without_control_plane_goes_on_with_the_stored_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let client = world.client(Some(directory.path().to_owned()));
    let mut current = client.current();
    let task = tokio::spawn(client.run());
    let first = next(&mut current).await.unwrap();
    task.abort();

    world.set(|s| s.failing = true);
    let client = world.client(Some(directory.path().to_owned()));
    let mut current = client.current();
    let restored = current.borrow_and_update().clone().expect("in force at once");
    assert_eq!(restored.chain(), first.chain());
    tokio::spawn(client.run());
    // It does not wait for the half of the life with asking, for the authority could be another one by now.
    world.set(|s| s.failing = false);
    let new = next(&mut current).await.unwrap();
    assert!(new.validity().issued - first.validity().issued < Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_five_minutes_off_renews_before_anybody_takes_the_old_one_for_expired() {
    const OFF: i64 = 300;
    for life in [1200, 86_400] {
        for off in [-OFF, OFF] {
            let world = World::new();
            let authority = world.clock.clone();
            let own: Clock = Arc::new(move || authority() + time::Duration::seconds(off));
            let client = world.client_with(None, own.clone(), Some(Duration::from_secs(life)));
            let (mut current, status) = (client.current(), client.status());
            tokio::spawn(client.run());
            let mut last = next(&mut current).await.expect("what is made now is valid by its clock");
            for _ in 0..5 {
                let renews = status.borrow().renews.unwrap();
                // At that moment, by the clock that is the furthest ahead of the authority's.
                let then = renews + ((world.clock)() + time::Duration::seconds(OFF) - own());
                let left = last.validity().expires - then;
                assert!(left > time::Duration::minutes(2), "{left} left of {life} s, {off} s off");
                let used = (renews - last.validity().issued).as_seconds_f64() / life as f64;
                assert!((0.3..0.7).contains(&used), "renewed after {used} of its life, {off} s off");
                let limit = Duration::from_secs(life);
                let new = next_within(limit, &mut current).await.expect("the old one is not withdrawn");
                // Sooner if a peer refused it: the whole process hears of that, from other tests too.
                assert!(new.validity().issued < renews + Duration::from_secs(1), "{off} s off");
                last = new;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_automatic_rotation_the_certificate_stays_to_its_end_and_then_there_is_another() {
    let world = World::new();
    let mut client = world.client(None);
    (client.config.automatic, client.rotation) = (false, Rotation::by_hand());
    let (mut current, status) = (client.current(), client.status());
    tokio::spawn(client.run());
    let first = next(&mut current).await.unwrap();
    let ended = first.validity().expires;
    let second = next(&mut current).await.unwrap();
    assert!(second.validity().issued >= ended, "it stayed to its end");
    assert_eq!((status.borrow().rotations, world.script.lock().unwrap().requests), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_not_answered_is_sent_again_with_the_same_key() {
    let world = World::new();
    world.set(|s| s.failing = true);
    let mut client = world.client(None);
    client.renew().await;
    let unanswered = client.unanswered.as_ref().unwrap().key.secret_pkcs8_der().to_vec();
    client.renew().await;
    world.set(|s| s.failing = false);
    client.renew().await;
    let first = client.published.borrow().as_ref().unwrap().key().secret_pkcs8_der().to_vec();
    assert_eq!(first, unanswered);
    client.renew().await;
    assert_ne!(client.published.borrow().as_ref().unwrap().key().secret_pkcs8_der(), unanswered);
}
