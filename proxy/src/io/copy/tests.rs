use std::cell::Cell;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::io::pipe;

/// Buffers of sockets, as small as the kernel takes them.
const SMALL: usize = 32 * 1024;
const MUCH: usize = 24 << 20;

/// Both ends of a TCP connection.
async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    SockRef::from(&listener).set_recv_buffer_size(SMALL).unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (far, _) = listener.accept().await.unwrap();
    for stream in [&near, &far] {
        let socket = SockRef::from(stream);
        socket.set_send_buffer_size(SMALL).unwrap();
        socket.set_recv_buffer_size(SMALL).unwrap();
        stream.set_nodelay(true).unwrap();
    }
    (near, far)
}

/// What stands at a place of a long text; no two stretches of it are alike by chance.
fn letter(at: usize) -> u8 {
    (at.wrapping_mul(0x9E37_79B9) >> 13) as u8
}

/// Writes a part of the text; `at` is how far it has come.
async fn write(to: &mut TcpStream, at: &Cell<usize>, end: usize) {
    let mut piece = vec![0; 60_000];
    while at.get() < end {
        let length = piece.len().min(end - at.get());
        piece[..length].iter_mut().enumerate().for_each(|(i, b)| *b = letter(at.get() + i));
        at.set(at.get() + to.write(&piece[..length]).await.unwrap());
    }
}

/// Reads the text from a place on, to the end of the stream or as far as it is wanted.
async fn read(from: &mut TcpStream, start: usize, end: usize) -> usize {
    let (mut at, mut piece) = (start, vec![0; 50_000]);
    while at < end {
        let n = from.read(&mut piece).await.unwrap();
        if n == 0 {
            break;
        }
        assert!(piece[..n].iter().enumerate().all(|(i, b)| *b == letter(at + i)), "after {at}");
        at += n;
    }
    at
}

/// Until the number has not changed for so many turns of everybody: whoever could move it has stopped.
async fn stands(number: &Cell<usize>) {
    let (mut last, mut turns) = (number.get(), 0);
    while turns < 5000 {
        tokio::task::yield_now().await;
        turns = if number.get() == last { turns + 1 } else { 0 };
        last = number.get();
    }
}

#[derive(Clone, Copy, PartialEq)]
enum From {
    Client,
    Server,
}

/// A writer on one side, a reader on the other that does not read until the writer stands still.
async fn slow_reader(writer: From, in_front: &'static [u8]) -> (u64, (usize, usize)) {
    let ((mut client, near), (far, mut server)) = (connection().await, connection().await);
    let (mut near, mut far) = (Io::tcp(near), Io::tcp(far));
    near.rewind(bytes::Bytes::from_static(in_front));
    let counts = Copied::default();
    let written = Cell::new(0);
    let copy = copy_bidirectional(&mut near, &mut far, None, &counts);
    let talk = async {
        let (from, to) = match writer {
            From::Client => (&mut client, &mut server),
            From::Server => (&mut server, &mut client),
        };
        let reading = async {
            stands(&written).await;
            // Four sockets, a pipe or a buffer, and what the kernel adds to each.
            assert!(written.get() < 4 << 20, "{} bytes are somewhere", written.get());
            assert!(written.get() > SMALL, "{}", written.get());
            let mut first = vec![0; if writer == From::Client { in_front.len() } else { 0 }];
            to.read_exact(&mut first).await.unwrap();
            assert_eq!(first, &in_front[..first.len()]);
            // Not all at once: it stops again, in the middle.
            let half = read(to, 0, MUCH / 2).await;
            stands(&written).await;
            assert!(written.get() - half < 4 << 20 && written.get() < MUCH, "{} of {half}", written.get());
            let ended = read(to, half, MUCH).await;
            assert_eq!(ended, MUCH);
        };
        tokio::join!(write(from, &written, MUCH), reading);
        // A small message goes at once, and each side ends on its own.
        for (from, to) in [(&mut client, &mut server)] {
            from.write_all(b"last").await.unwrap();
            from.shutdown().await.unwrap();
            let mut rest = Vec::new();
            to.read_to_end(&mut rest).await.unwrap();
            assert!(rest.ends_with(b"last") && rest.len() <= in_front.len() + 4, "{}", rest.len());
            to.write_all(b"answer").await.unwrap();
            to.shutdown().await.unwrap();
            from.read_to_end(&mut rest).await.unwrap();
            assert!(rest.ends_with(b"lastanswer"));
        }
    };
    let (end, ()) = tokio::join!(copy, talk);
    assert_eq!(end, CopyEnd::Finished);
    let total = counts.received.get() + counts.sent.get();
    assert_eq!(total, (MUCH + 10 + in_front.len()) as u64);
    (total, pipe::alive())
}

#[tokio::test]
async fn a_slow_reader_stops_the_writer_and_gets_every_byte() {
    for writer in [From::Client, From::Server] {
        let (_, (pipes, spare)) = slow_reader(writer, b"").await;
        assert!(pipes > 0, "the kernel moves what comes in bulk");
        assert_eq!(pipes, spare, "pipes are given back");
        // What was read before is there first.
        slow_reader(writer, b"sniffed").await;
    }
}

#[tokio::test]
async fn connections_share_the_pipes_and_those_beyond_them_copy() {
    // Readers that do not read hold a pipe each.
    let mut held = Vec::new();
    while let Some(pipe) = Pipe::take() {
        held.push(pipe);
    }
    let (_, (pipes, spare)) = slow_reader(From::Client, b"").await;
    assert_eq!((pipes, spare), (held.len(), 0));
    held.into_iter().for_each(Pipe::give_back);
    let (pipes, spare) = pipe::alive();
    assert_eq!(pipes, spare, "those that nobody needs are closed");
    assert!(pipes > 0 && pipes < 10);
}

#[tokio::test]
async fn a_filter_that_decides_over_bytes_sees_all_of_them() {
    struct Counts(std::sync::Arc<std::sync::atomic::AtomicUsize>);
    impl crate::io::Gate for Counts {
        fn data(&mut self) -> crate::io::Pass {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            crate::io::Pass::Once
        }
        fn refused(&mut self, _: u64) {}
    }
    let ((mut client, near), (far, mut server)) = (connection().await, connection().await);
    let (mut near, mut far) = (Io::tcp(near), Io::tcp(far));
    let asked = std::sync::Arc::default();
    near.watch(Counts(std::sync::Arc::clone(&asked)));
    let (counts, written) = (Copied::default(), Cell::new(0));
    let talk = async {
        tokio::join!(write(&mut client, &written, 4 << 20), read(&mut server, 0, 4 << 20));
        drop((client, server));
    };
    tokio::join!(copy_bidirectional(&mut near, &mut far, None, &counts), talk);
    assert_eq!(counts.received.get(), 4 << 20);
    let asked = asked.load(std::sync::atomic::Ordering::Relaxed);
    assert!(asked >= (4 << 20) / scratch::SIZE, "it was asked {asked} times");
    assert_eq!(pipe::alive().0, 0);
}

#[tokio::test]
async fn a_connection_is_cut_off_while_its_reader_is_slow() {
    let ((mut client, near), (far, _server)) = (connection().await, connection().await);
    let (mut near, mut far) = (Io::tcp(near), Io::tcp(far));
    let (bell, ear) = crate::io::bell();
    near.cut_by(ear);
    let (counts, written) = (Copied::default(), Cell::new(0));
    let cut = async {
        stands(&written).await;
        bell.ring();
        std::future::pending::<()>().await;
    };
    let end = tokio::select! {
        end = copy_bidirectional(&mut near, &mut far, None, &counts) => end,
        () = cut => unreachable!(),
        () = write(&mut client, &written, MUCH) => unreachable!("nobody reads it"),
    };
    assert_eq!(end, CopyEnd::DownstreamError);
}

#[tokio::test]
async fn bytes_go_both_ways_and_a_half_close_is_handed_on() {
    let ((mut client, near), (far, mut server)) = (tokio::io::duplex(64), tokio::io::duplex(64));
    let (mut near, mut far) = (Io::memory(near), Io::memory(far));
    let counts = Copied::default();
    let copy = copy_bidirectional(&mut near, &mut far, None, &counts);
    let talk = async {
        client.write_all(&[b'q'; 1000]).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let serve = async {
        let mut question = Vec::new();
        server.read_to_end(&mut question).await.unwrap();
        // Our side may still speak after theirs has ended.
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
        question.len()
    };
    let (end, answer, question) = tokio::join!(copy, talk, serve);
    assert_eq!((answer.as_slice(), question), (b"answer".as_slice(), 1000));
    assert_eq!((counts.received.get(), counts.sent.get(), end), (1000, 6, CopyEnd::Finished));
}

#[tokio::test(start_paused = true)]
async fn silence_ends_it_after_the_idle_timeout_and_not_before() {
    let ((mut client, near), (far, _server)) = (tokio::io::duplex(64), tokio::io::duplex(64));
    let (mut near, mut far) = (Io::memory(near), Io::memory(far));
    let began = now();
    let talk = async {
        tokio::time::sleep(Duration::from_secs(40)).await;
        client.write_all(b"x").await.unwrap();
        std::future::pending::<()>().await;
    };
    let counts = Copied::default();
    let end = tokio::select! {
        end = copy_bidirectional(&mut near, &mut far, Some(Duration::from_secs(60)), &counts) => end,
        () = talk => unreachable!(),
    };
    assert_eq!((end, counts.received.get()), (CopyEnd::Idle, 1));
    assert_eq!((now() - began).as_secs(), 100);
}

#[tokio::test]
async fn a_reset_is_told_from_an_end_in_order_also_where_the_kernel_moves_the_bytes() {
    for much in [1, 4 * BULK] {
        for by_downstream in [true, false] {
            let ((client, near), (far, server)) = (connection().await, connection().await);
            let (mut near, mut far) = (Io::tcp(near), Io::tcp(far));
            let copied = Copied::default();
            let (mut from, mut to) = if by_downstream { (client, server) } else { (server, client) };
            let talk = async {
                let (bytes, mut read) = (vec![7; much], vec![0; much]);
                let (sent, came) = tokio::join!(from.write_all(&bytes), to.read_exact(&mut read));
                sent.and(came.map(|_| ())).unwrap();
                SockRef::from(&from).set_linger(Some(Duration::ZERO)).unwrap();
                drop(from);
            };
            let (end, ()) = tokio::join!(copy_bidirectional(&mut near, &mut far, None, &copied), talk);
            let broken = if by_downstream { CopyEnd::DownstreamError } else { CopyEnd::UpstreamError };
            assert_eq!((end, copied.reset.get()), (broken, true), "{much}");
            // The other side is to see the same.
            let other = if by_downstream { far } else { near };
            other.reset();
            drop(other);
            assert_eq!(to.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
    }
}
