//! The load generator: raw HTTP/1.1 on one thread, so that it costs little.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::ValueEnum;
use memchr::memmem;
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::unix_micros;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scenario {
    /// Small unary requests, 32 connections, as fast as they go
    Tiny,
    /// The same on one connection
    TinyOne,
    /// 300 short streams a second at random times
    Moderate,
    /// 64 streams with an event each 10 ms
    Events,
    /// 64 streams without a pause
    Flat,
    /// Chats with 1 MiB of image, 8 connections
    Mib,
    /// The same on one connection
    MibOne,
    /// 2000 streams that say one word and fall silent
    Idle,
    /// As many callers as the workers of the overload have places, as fast as they go
    Peak,
    /// Ten times what these workers can do, at random times
    Overload,
}

/// A stream of the overload: 100 ms of work.
const WORK: &str = "4,25,25";
/// Callers that keep 32 slots, and the quarter more that the router sends, busy.
const PLACES: usize = 40;
/// What 32 slots can do in a second, ten times.
const TEN_TIMES: f64 = 3200.0;
/// How long an idle connection is used again; servers close them after a while.
const KEPT: Duration = Duration::from_secs(4);
/// Over which the worst rate is taken, seconds.
const SPELL: usize = 5;

/// What was seen.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Requests, or events where these are counted.
    pub(crate) count: u64,
    pub(crate) seconds: f64,
    /// Times in milliseconds: to the answer, the first byte, or of an event's way.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) errors: u64,
    /// Answered with 429 or 503.
    pub(crate) refused: u64,
    /// Of these, those that did not say when to come back.
    pub(crate) silent: u64,
    /// The least answered per second, over five seconds in a row.
    pub(crate) worst: f64,
}

#[derive(Default)]
struct Tally {
    count: u64,
    millis: Vec<f64>,
    errors: u64,
    refused: u64,
    silent: u64,
    /// Seconds since the start at which answers were whole.
    ended: Vec<f64>,
}

/// How a request ended.
#[derive(PartialEq)]
enum End {
    Whole,
    Refused { says_when: bool },
    Broken,
}

pub(crate) fn run(scenario: Scenario, address: SocketAddr, seconds: u64) -> Seen {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let start = Instant::now();
        let until = start + Duration::from_secs(seconds);
        let tallies = match scenario {
            Scenario::Tiny => closed(address, 32, until, request("", 0)).await,
            Scenario::TinyOne => closed(address, 1, until, request("", 0)).await,
            Scenario::Mib => closed(address, 8, until, request("", 1 << 20)).await,
            Scenario::MibOne => closed(address, 1, until, request("", 1 << 20)).await,
            Scenario::Moderate => open(address, until).await,
            Scenario::Peak => closed(address, PLACES, until, request(WORK, 0)).await,
            Scenario::Overload => overload(address, start, until).await,
            Scenario::Events => {
                streams(address, 64, &format!("{},10,0", seconds * 100), false).await
            }
            Scenario::Flat => streams(address, 64, &format!("{},0,0", seconds * 1000), false).await,
            Scenario::Idle => streams(address, 2000, "2,600000,0", true).await,
        };
        let seconds = start.elapsed().as_secs_f64();
        let mut millis: Vec<f64> = tallies
            .iter()
            .flat_map(|t| t.millis.iter().copied())
            .collect();
        millis.sort_by(f64::total_cmp);
        let at = |share: usize| {
            millis
                .get(millis.len() * share / 100)
                .copied()
                .unwrap_or(0.0)
        };
        Seen {
            count: tallies.iter().map(|t| t.count).sum(),
            seconds,
            p50: at(50),
            p99: at(99),
            errors: tallies.iter().map(|t| t.errors).sum(),
            refused: tallies.iter().map(|t| t.refused).sum(),
            silent: tallies.iter().map(|t| t.silent).sum(),
            worst: worst(&tallies),
        }
    })
}

fn request(wish: &str, image: usize) -> Vec<u8> {
    let content = if image > 0 {
        let base64 = "iVBORw0KGgo".repeat(image / 11);
        format!(
            r#"[{{"type":"text","text":"What is this?"}},{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{base64}"}}}}]"#
        )
    } else if wish.is_empty() {
        r#""Describe the image in one word, please, and nothing more than that.""#.to_owned()
    } else {
        format!(r#""wish:{wish}; Describe the image in one word, please.""#)
    };
    let extra = if wish.is_empty() {
        ""
    } else {
        r#","stream":true"#
    };
    let body = format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":{content}}}],"max_tokens":16,"temperature":0{extra}}}"#
    );
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\naccept: */*\r\nuser-agent: bench\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body.into_bytes()].concat()
}

/// Callers that ask again as soon as they are answered.
async fn closed(
    address: SocketAddr,
    callers: usize,
    until: Instant,
    request: Vec<u8>,
) -> Vec<Tally> {
    let request: Arc<[u8]> = request.into();
    let caller = || {
        let request = Arc::clone(&request);
        tokio::spawn(async move {
            let mut tally = Tally::default();
            let mut stream = connect(address).await;
            let mut buffer = Vec::with_capacity(64 * 1024);
            while Instant::now() < until {
                let sent = Instant::now();
                if stream.write_all(&request).await.is_err()
                    || answer(&mut stream, &mut buffer, |_| {}).await != End::Whole
                {
                    tally.errors += 1;
                    stream = connect(address).await;
                    continue;
                }
                tally.count += 1;
                tally.millis.push(sent.elapsed().as_secs_f64() * 1e3);
            }
            tally
        })
    };
    join((0..callers).map(|_| caller()).collect()).await
}

/// Streams that begin at random times whether or not others have ended.
async fn open(address: SocketAddr, until: Instant) -> Vec<Tally> {
    let request: Arc<[u8]> = request("4,5,5", 0).into();
    let mut running = Vec::new();
    let mut next = Instant::now();
    while next < until {
        let pause = -(1.0 - rand::rng().random::<f64>()).ln() / 300.0;
        next += Duration::from_secs_f64(pause);
        tokio::time::sleep_until(next).await;
        let request = Arc::clone(&request);
        running.push(tokio::spawn(async move {
            let mut tally = Tally::default();
            let mut stream = connect(address).await;
            let sent = Instant::now();
            stream.write_all(&request).await.unwrap();
            let mut first = None;
            let end = answer(&mut stream, &mut Vec::with_capacity(8192), |text| {
                if first.is_none() && memmem::find(text, b"data:").is_some() {
                    first = Some(sent.elapsed());
                }
            })
            .await;
            match first.filter(|_| end == End::Whole) {
                Some(first) => tally.millis.push(first.as_secs_f64() * 1e3),
                None => tally.errors += 1,
            }
            tally.count += 1;
            tally
        }));
    }
    join(running).await
}

/// Requests at random times, ten times as many as can be served, on connections
/// that are kept.
async fn overload(address: SocketAddr, start: Instant, until: Instant) -> Vec<Tally> {
    let request: Arc<[u8]> = request(WORK, 0).into();
    let idle: Arc<Mutex<Vec<(Instant, TcpStream)>>> = Arc::default();
    let mut running = JoinSet::new();
    let mut tallies = Vec::new();
    let mut next = Instant::now();
    while next < until {
        let pause = -(1.0 - rand::rng().random::<f64>()).ln() / TEN_TIMES;
        next += Duration::from_secs_f64(pause);
        if next > Instant::now() {
            tokio::time::sleep_until(next).await;
        }
        let (request, idle) = (Arc::clone(&request), Arc::clone(&idle));
        running.spawn(async move {
            let mut tally = Tally::default();
            let kept = idle.lock().unwrap().pop();
            let mut stream = match kept.filter(|(since, _)| since.elapsed() < KEPT) {
                Some((_, stream)) => stream,
                None => connect(address).await,
            };
            let sent = Instant::now();
            stream.write_all(&request).await.unwrap();
            match answer(&mut stream, &mut Vec::with_capacity(4096), |_| {}).await {
                End::Whole => {
                    tally.count = 1;
                    tally.millis.push(sent.elapsed().as_secs_f64() * 1e3);
                    tally.ended.push(start.elapsed().as_secs_f64());
                }
                End::Refused { says_when } => {
                    tally.refused = 1;
                    tally.silent = u64::from(!says_when);
                }
                End::Broken => {
                    tally.errors = 1;
                    return tally;
                }
            }
            idle.lock().unwrap().push((Instant::now(), stream));
            tally
        });
        while let Some(ended) = running.try_join_next() {
            tallies.push(ended.unwrap());
        }
    }
    while let Some(ended) = running.join_next().await {
        tallies.push(ended.unwrap());
    }
    tallies
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "whole seconds of a short run"
)]
fn worst(tallies: &[Tally]) -> f64 {
    let mut seconds: Vec<usize> = Vec::new();
    for ended in tallies.iter().flat_map(|tally| &tally.ended) {
        let second = *ended as usize;
        seconds.resize(seconds.len().max(second + 1), 0);
        seconds[second] += 1;
    }
    // The first second fills the slots, the last one empties them.
    let inner = seconds
        .get(1..seconds.len().saturating_sub(2))
        .unwrap_or(&[]);
    let spells = inner
        .windows(SPELL)
        .map(|spell| spell.iter().sum::<usize>());
    spells.min().unwrap_or(0) as f64 / SPELL as f64
}

/// Streams at once, whose events carry the time of their sending. With `hold`,
/// they are kept open after the first one until this process is told to end.
async fn streams(address: SocketAddr, count: usize, wish: &str, hold: bool) -> Vec<Tally> {
    let request: Arc<[u8]> = request(wish, 0).into();
    let stream = || {
        let request = Arc::clone(&request);
        tokio::spawn(async move {
            let mut tally = Tally::default();
            let mut stream = connect(address).await;
            stream.write_all(&request).await.unwrap();
            if hold {
                let mut some = [0; 4096];
                let mut seen = 0;
                while memmem::find(&some[..seen], b"data:").is_none() {
                    seen += stream.read(&mut some[seen..]).await.unwrap();
                }
                tally.count = 1;
                std::mem::forget(stream);
                return tally;
            }
            let end = answer(&mut stream, &mut Vec::with_capacity(64 * 1024), |text| {
                let now = unix_micros();
                for at in memmem::find_iter(text, b"\"content\":\"t") {
                    let sent = text
                        .get(at + 12..at + 28)
                        .and_then(|digits| std::str::from_utf8(digits).ok());
                    tally.count += 1;
                    if let Some(sent) = sent.and_then(|sent| sent.parse::<u64>().ok()) {
                        let way = u32::try_from(now.saturating_sub(sent)).unwrap_or(u32::MAX);
                        tally.millis.push(f64::from(way) / 1e3);
                    }
                }
            })
            .await;
            tally.errors += u64::from(end != End::Whole);
            tally
        })
    };
    let mut running = Vec::new();
    for number in 0..count {
        running.push(stream());
        if number % 64 == 63 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let tallies = join(running).await;
    if hold {
        println!("held");
        // Until standard input closes.
        let _ = tokio::task::spawn_blocking(|| std::io::read_to_string(std::io::stdin())).await;
    }
    tallies
}

async fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

async fn join(running: Vec<tokio::task::JoinHandle<Tally>>) -> Vec<Tally> {
    let mut tallies = Vec::with_capacity(running.len());
    for one in running {
        tallies.push(one.await.unwrap());
    }
    tallies
}

/// Reads one answer, shows each read of a 200, and says how it ended.
async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>, mut seen: impl FnMut(&[u8])) -> End {
    buffer.clear();
    let head = loop {
        match stream.read_buf(buffer).await {
            Ok(0) | Err(_) => return End::Broken,
            Ok(_) => {}
        }
        if let Some(end) = memmem::find(buffer, b"\r\n\r\n") {
            break end + 4;
        }
    };
    let lower = buffer[..head].to_ascii_lowercase();
    let end = match &buffer[..12] {
        b"HTTP/1.1 200" => End::Whole,
        b"HTTP/1.1 429" | b"HTTP/1.1 503" => End::Refused {
            says_when: memmem::find(&lower, b"\r\nretry-after: ").is_some(),
        },
        _ => return End::Broken,
    };
    if let Some(at) = memmem::find(&lower, b"content-length: ") {
        let digits = lower[at + 16..].split(|b| *b == b'\r').next().unwrap();
        let length: usize = std::str::from_utf8(digits).unwrap().parse().unwrap();
        while buffer.len() < head + length {
            if stream.read_buf(buffer).await.unwrap_or(0) == 0 {
                return End::Broken;
            }
        }
        return end;
    }
    seen(&buffer[head..]);
    loop {
        if buffer.ends_with(b"0\r\n\r\n") {
            return end;
        }
        let keep = buffer.len().saturating_sub(4);
        buffer.drain(..keep);
        let before = buffer.len();
        if stream.read_buf(buffer).await.unwrap_or(0) == 0 {
            return End::Broken;
        }
        seen(&buffer[before..]);
    }
}
