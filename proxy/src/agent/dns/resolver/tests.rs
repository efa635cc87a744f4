use std::time::Duration;

use hickory_proto::op::Edns;
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::super::message::{Request, Transport, read};
use super::super::testing::{Server, question};
use super::super::upstream::Times;
use super::*;

fn resolver(servers: &[&Server]) -> Resolver {
    let stats = Stats::new();
    let servers: Vec<_> = servers.iter().map(|s| s.address).collect();
    Resolver::new(Upstream::new(&servers, Times::default(), stats.clone()), stats)
}

fn query(message: &Message) -> Query {
    match read(&message.to_vec().unwrap()) {
        Request::Query(query) => *query,
        other => panic!("{other:?}"),
    }
}

/// The answers' data and TTLs, or the code.
async fn ask(resolver: &Resolver, host: &str) -> Result<Vec<(String, u32)>, ResponseCode> {
    let response = resolver.answer(&query(&question(host, RecordType::A))).await?;
    match response.metadata.response_code {
        ResponseCode::NoError => Ok(response.answers.iter().map(|r| (r.data.to_string(), r.ttl)).collect()),
        code => Err(code),
    }
}

fn address(ip: &str, ttl: u32) -> Result<Vec<(String, u32)>, ResponseCode> {
    Ok(vec![(ip.to_owned(), ttl)])
}

#[tokio::test]
async fn an_answer_is_asked_for_once_however_many_wait_and_kept() {
    let server = Server::with_address("192.0.2.1", 300).await;
    let resolver = resolver(&[&server]);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let resolver = resolver.clone();
        tasks.spawn(async move { ask(&resolver, "a.example").await });
    }
    while let Some(answer) = tasks.join_next().await {
        assert_eq!(answer.unwrap(), address("192.0.2.1", 300));
    }
    assert_eq!(ask(&resolver, "A.Example").await, address("192.0.2.1", 300));
    assert_eq!(server.asked(), 1);
    ask(&resolver, "b.example").await.unwrap();
    assert_eq!((server.asked(), resolver.status().0.0), (2, 2));
}

#[tokio::test]
async fn what_is_not_there_is_remembered() {
    let server = Server::start(|_, _, mut begun| {
        begun.metadata.response_code = ResponseCode::NXDomain;
        let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, 60);
        begun.add_authority(Record::from_rdata(Name::root(), 60, RData::SOA(soa)));
        Some(begun)
    })
    .await;
    let resolver = resolver(&[&server]);
    for _ in 0..3 {
        assert_eq!(ask(&resolver, "nobody.example").await, Err(ResponseCode::NXDomain));
    }
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn a_server_that_keeps_silent_is_left_alone_for_a_while() {
    let silent = Server::start(|_, _, _| None).await;
    let server = Server::with_address("192.0.2.1", 300).await;
    let stats = Stats::new();
    // On a busy machine the other one may be slow, too, but not for so long.
    let times = Times {
        whole: Duration::from_secs(60),
        step: Duration::from_secs(3),
        back: [Duration::from_secs(600); 2],
    };
    let upstream = Upstream::new(&[silent.address, server.address], times, stats.clone());
    let resolver = Resolver::new(upstream, stats);
    for host in ["a.example", "b.example", "c.example", "d.example"] {
        assert_eq!(ask(&resolver, host).await, address("192.0.2.1", 300));
    }
    assert_eq!((silent.asked(), server.asked()), (1, 4));
    let failing: Vec<bool> = resolver.status().1.iter().map(|s| s.failures > 0).collect();
    assert_eq!(failing, [true, false]);
}

#[tokio::test]
async fn a_server_that_cannot_help_is_followed_by_one_that_can() {
    let helpless = Server::start(|_, _, mut begun| {
        begun.metadata.response_code = ResponseCode::Refused;
        Some(begun)
    })
    .await;
    let server = Server::with_address("192.0.2.1", 300).await;
    assert_eq!(ask(&resolver(&[&helpless, &server]), "a.example").await, address("192.0.2.1", 300));
    // Alone, its code is the answer, and it is not asked again at once.
    let alone = resolver(&[&helpless]);
    assert_eq!(ask(&alone, "a.example").await, Err(ResponseCode::Refused));
    assert_eq!(ask(&alone, "a.example").await, Err(ResponseCode::ServFail));
    assert_eq!(helpless.asked(), 2);
}

#[tokio::test]
async fn answers_outlive_their_time_while_nobody_answers() {
    let server = Server::with_address("192.0.2.1", 0).await;
    let resolver = resolver(&[&server]);
    assert_eq!(ask(&resolver, "a.example").await, address("192.0.2.1", 0));
    // An answer that holds for no time is asked for each time.
    assert_eq!(ask(&resolver, "a.example").await, address("192.0.2.1", 0));
    assert_eq!(server.asked(), 2);
    drop(server);
    assert_eq!(ask(&resolver, "a.example").await, address("192.0.2.1", 0));
    assert_eq!(ask(&resolver, "b.example").await, Err(ResponseCode::ServFail));
}

#[tokio::test]
async fn who_has_an_old_answer_does_not_wait_long_for_a_new_one() {
    let silent = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_silent = silent.clone();
    let server = Server::start(move |asked, _, mut begun| {
        let a = RData::A(hickory_proto::rr::rdata::A::new(192, 0, 2, 1));
        begun.add_answer(Record::from_rdata(asked.queries[0].name.clone(), 0, a));
        (!is_silent.load(std::sync::atomic::Ordering::Relaxed)).then_some(begun)
    })
    .await;
    let resolver = resolver(&[&server]);
    assert_eq!(ask(&resolver, "a.example").await, address("192.0.2.1", 0));
    silent.store(true, std::sync::atomic::Ordering::Relaxed);
    let began = Instant::now();
    assert_eq!(ask(&resolver, "a.example").await, address("192.0.2.1", 0));
    let waited = began.elapsed();
    assert!(waited >= STALE_AFTER && waited < Duration::from_secs(4), "{waited:?}");
}

#[tokio::test]
async fn what_does_not_fit_comes_by_tcp() {
    let server = Server::start(|asked, transport, mut begun| {
        if transport == Transport::Udp {
            begun.metadata.truncation = true;
            return Some(begun);
        }
        for n in 0..200 {
            let a = RData::A(hickory_proto::rr::rdata::A::new(192, 0, 2, n));
            begun.add_answer(Record::from_rdata(asked.queries[0].name.clone(), 60, a));
        }
        Some(begun)
    })
    .await;
    let answers = ask(&resolver(&[&server]), "many.example").await.unwrap();
    assert_eq!((answers.len(), server.asked()), (200, 2));
}

#[tokio::test]
async fn a_server_without_edns_is_asked_without() {
    let server = Server::start(|asked, _, mut begun| {
        if asked.edns.is_some() {
            begun.metadata.response_code = ResponseCode::FormErr;
            begun.queries.clear();
            return Some(begun);
        }
        let a = RData::A(hickory_proto::rr::rdata::A::new(192, 0, 2, 1));
        begun.add_answer(Record::from_rdata(asked.queries[0].name.clone(), 60, a));
        Some(begun)
    })
    .await;
    assert_eq!(ask(&resolver(&[&server]), "a.example").await, address("192.0.2.1", 60));
}

#[tokio::test]
async fn options_go_to_the_server_and_back_and_their_answers_to_nobody_else() {
    let server = Server::start(|asked, _, mut begun| {
        begun.edns = asked.edns.clone();
        let a = RData::A(hickory_proto::rr::rdata::A::new(192, 0, 2, 1));
        begun.add_answer(Record::from_rdata(asked.queries[0].name.clone(), 60, a));
        Some(begun)
    })
    .await;
    let resolver = resolver(&[&server]);
    let mut message = question("a.example", RecordType::A);
    let mut edns = Edns::new();
    edns.options_mut().insert(EdnsOption::Unknown(65_001, vec![7]));
    message.set_edns(edns);
    for n in 1..3 {
        let response = resolver.answer(&query(&message)).await.unwrap();
        let options = response.edns.unwrap().options().options.clone();
        assert!(
            matches!(options.as_slice(), [(_, EdnsOption::Unknown(65_001, data))] if *data == [7]),
            "{options:?}"
        );
        assert_eq!(server.asked(), n);
    }
    assert_eq!(resolver.status().0.0, 0);
}
