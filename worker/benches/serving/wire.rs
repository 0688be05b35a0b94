//! A client that costs little: requests written beforehand, answers read as
//! they are, connections kept. What the load generator takes, it takes from
//! nobody's figures.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use std::net::SocketAddr;

/// Connections to a worker that nobody uses at the moment.
#[derive(Debug)]
pub(crate) struct Wires {
    to: SocketAddr,
    idle: Mutex<Vec<TcpStream>>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Whether it says when to come back.
    pub(crate) later: bool,
    pub(crate) body: Vec<u8>,
}

impl Wires {
    pub(crate) fn new(to: SocketAddr) -> Self {
        Self {
            to,
            idle: Mutex::default(),
        }
    }

    /// Asks for a chat that does not stream.
    pub(crate) async fn chat(&self, body: &str) -> Answer {
        let (mut stream, mut bytes, at) = self.ask(body).await;
        let head = String::from_utf8(bytes[..at].to_vec()).unwrap();
        let length: usize = header(&head, "content-length").unwrap().parse().unwrap();
        let length = at + 4 + length;
        while bytes.len() < length {
            more(&mut stream, &mut bytes).await;
        }
        if header(&head, "connection") != Some("close") {
            self.idle.lock().await.push(stream);
        }
        Answer {
            status: head[9..12].parse().unwrap(),
            later: header(&head, "retry-after").is_some(),
            body: bytes.split_off(at + 4),
        }
    }

    /// Asks for a chat that streams; gives the last of its bytes, with the token counts.
    pub(crate) async fn stream(&self, body: &str) -> String {
        let (mut stream, mut bytes, at) = self.ask(body).await;
        assert!(bytes.starts_with(b"HTTP/1.1 200"), "{:?}", &bytes[..at]);
        while !bytes.ends_with(b"\r\n0\r\n\r\n") {
            // Only the end is looked into.
            bytes.drain(..bytes.len().saturating_sub(1024));
            more(&mut stream, &mut bytes).await;
        }
        self.idle.lock().await.push(stream);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Sends a chat and reads up to the end of the answer's head, which it gives last.
    async fn ask(&self, body: &str) -> (TcpStream, Vec<u8>, usize) {
        let idle = self.idle.lock().await.pop();
        let mut stream = match idle {
            Some(stream) => stream,
            None => self.connect().await,
        };
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::with_capacity(4096);
        loop {
            more(&mut stream, &mut bytes).await;
            if let Some(at) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
                return (stream, bytes, at);
            }
        }
    }

    async fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.to).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }
}

async fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) {
    let read = stream.read_buf(bytes).await.unwrap();
    assert!(read > 0, "the worker hung up");
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
