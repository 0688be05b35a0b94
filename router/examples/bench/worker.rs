//! A worker on one thread with just enough HTTP/1.1 that it is never the
//! bottleneck. What it does is told by the prompt, `wish:` and numbers, which
//! every peer passes on: `events,gap in ms,wait in ms`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use memchr::memmem;
use protocol::load::{LoadReport, Phase};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::unix_micros;

const MODELS: &str = r#"{"object":"list","data":[{"id":"m","object":"model"}]}"#;
const CHAT: &str = r#"{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}"#;

/// What the connections of a worker share.
struct Shared {
    slots: u32,
    free: Semaphore,
    waiting: AtomicU32,
}

impl Shared {
    fn load(&self) -> String {
        let free = u32::try_from(self.free.available_permits()).unwrap();
        let load = LoadReport {
            phase: Phase::Serving,
            running: self.slots - free,
            waiting: self.waiting.load(Ordering::Relaxed),
            slots: self.slots,
            captured_at_ms: unix_micros() / 1000,
            ..LoadReport::default()
        };
        serde_json::to_string(&load).unwrap()
    }
}

/// Serves with this many slots; streams beyond them wait.
pub(crate) fn run(listen: SocketAddr, slots: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await.unwrap();
        let shared = Arc::new(Shared {
            slots,
            free: Semaphore::new(slots as usize),
            waiting: AtomicU32::new(0),
        });
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                let _ = serve(stream, &shared).await;
            });
        }
    });
}

async fn serve(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(16 * 1024);
    loop {
        let head = loop {
            if let Some(end) = memmem::find(&buffer, b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let lower = buffer[..head].to_ascii_lowercase();
        let length =
            header(&lower, b"content-length: ").and_then(|text| text.parse::<usize>().ok());
        if header(&lower, b"expect: ").is_some() {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let is_post = buffer.starts_with(b"POST");
        let body = match length {
            Some(length) => {
                buffer.reserve((head + length).saturating_sub(buffer.len()));
                while buffer.len() < head + length {
                    if stream.read_buf(&mut buffer).await? == 0 {
                        return Ok(());
                    }
                }
                length
            }
            None if header(&lower, b"transfer-encoding: ").is_some() => {
                while !buffer.ends_with(b"0\r\n\r\n") {
                    if stream.read_buf(&mut buffer).await? == 0 {
                        return Ok(());
                    }
                }
                buffer.len() - head
            }
            None => 0,
        };
        let wish = if is_post && body < 64 * 1024 {
            wish(&buffer[head..head + body])
        } else {
            None
        };
        let is_load = buffer.starts_with(b"GET /v1/load");
        buffer.drain(..head + body);
        match wish {
            Some(wish) => {
                shared.waiting.fetch_add(1, Ordering::Relaxed);
                let slot = shared.free.acquire().await.unwrap();
                shared.waiting.fetch_sub(1, Ordering::Relaxed);
                events(&mut stream, wish).await?;
                drop(slot);
            }
            None if is_post => whole(&mut stream, CHAT).await?,
            None if is_load => whole(&mut stream, &shared.load()).await?,
            None => whole(&mut stream, MODELS).await?,
        }
    }
}

fn header<'a>(lower: &'a [u8], name: &[u8]) -> Option<&'a str> {
    let at = memmem::find(lower, name)? + name.len();
    let end = memchr::memchr(b'\r', &lower[at..])?;
    std::str::from_utf8(&lower[at..at + end]).ok()
}

async fn whole(stream: &mut TcpStream, text: &str) -> std::io::Result<()> {
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
        text.len()
    );
    stream.write_all(answer.as_bytes()).await
}

struct Wish {
    events: u64,
    gap: u64,
    wait: u64,
}

fn wish(body: &[u8]) -> Option<Wish> {
    let at = memmem::find(body, b"wish:")? + 5;
    let end = at + memchr::memchr(b';', &body[at..])?;
    let text = std::str::from_utf8(&body[at..end]).ok()?;
    let mut numbers = text.split(',').map_while(|n| n.parse().ok());
    Some(Wish {
        events: numbers.next()?,
        gap: numbers.next()?,
        wait: numbers.next()?,
    })
}

async fn events(stream: &mut TcpStream, wish: Wish) -> std::io::Result<()> {
    let sleep = |millis| tokio::time::sleep(Duration::from_millis(millis));
    if wish.wait > 0 {
        sleep(wish.wait).await;
    }
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        .await?;
    for number in 0..wish.events {
        if number > 0 && wish.gap > 0 {
            sleep(wish.gap).await;
        }
        let event = format!(
            "data: {{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"t{:016}\"}},\"finish_reason\":null}}]}}\n\n",
            unix_micros()
        );
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        stream.write_all(chunk.as_bytes()).await?;
    }
    stream
        .write_all(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        .await
}
