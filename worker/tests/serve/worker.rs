//! A running worker, and asking it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use protocol::load::LoadReport;
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use shell::clock;
use tempfile::TempDir;

use crate::checkpoint;

const PATIENCE: Duration = Duration::from_secs(60);

/// A process that serves a checkpoint; ended with the value.
pub(crate) struct Worker {
    child: Child,
    pub api: SocketAddr,
    admin: SocketAddr,
    client: Client,
    log: Arc<Mutex<Vec<Value>>>,
    _dir: Option<TempDir>,
}

impl Worker {
    /// Serves the fixture under the name `tiny` on one thread and waits until it is ready.
    pub(crate) async fn start(flags: &[&str]) -> Self {
        let dir = checkpoint::write();
        let names = [
            "--model-name",
            "tiny",
            "--model-alias",
            "other",
            "--threads",
            "1",
        ];
        let path = dir.path().to_owned();
        let worker = Self::launch(&path, &[&names, flags].concat(), &[], Some(dir));
        worker.until("ready", async || worker.ready().await).await;
        worker
    }

    /// Serves the demo checkpoint under the name `llava-shapes` and waits until it is ready.
    pub(crate) async fn start_demo(flags: &[&str]) -> Self {
        Self::serve(&demo(), flags).await
    }

    /// Serves the checkpoint in `dir` and waits until it is ready.
    pub(crate) async fn serve(dir: &Path, flags: &[&str]) -> Self {
        let worker = Self::spawn(dir, flags);
        worker.until("ready", async || worker.ready().await).await;
        worker
    }

    /// Starts to serve the checkpoint in `dir`.
    pub(crate) fn spawn(dir: &Path, flags: &[&str]) -> Self {
        Self::launch(dir, flags, &[], None)
    }

    /// Starts to serve the demo checkpoint with these variables in the environment.
    pub(crate) fn spawn_demo_with(variables: &[(&str, &str)], flags: &[&str]) -> Self {
        Self::launch(&demo(), flags, variables, None)
    }

    fn launch(
        dir: &Path,
        flags: &[&str],
        variables: &[(&str, &str)],
        kept: Option<TempDir>,
    ) -> Self {
        shell::tls::install_provider();
        let mut child = Command::new(env!("CARGO_BIN_EXE_llava-worker"))
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
            ])
            .args(["--log-format", "json"])
            .args(flags)
            .arg("--model")
            .arg(dir)
            .envs(variables.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (mut api, mut admin) = (None, None);
        while admin.is_none() {
            let line = lines
                .next()
                .unwrap_or_else(|| panic!("the worker ended while starting"))
                .unwrap();
            let entry: Value = serde_json::from_str(&line).unwrap();
            let address = |name: &str| entry[name].as_str().and_then(|text| text.parse().ok());
            (api, admin) = (address("api"), address("admin"));
            log.lock().unwrap().push(entry);
        }
        // A pipe that nobody reads would stop the worker.
        let keep = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let entry = serde_json::from_str(&line).unwrap_or(Value::String(line));
                keep.lock().unwrap().push(entry);
            }
        });
        Self {
            child,
            api: api.unwrap(),
            admin: admin.unwrap(),
            client: Client::builder().no_proxy().build().unwrap(),
            log,
            _dir: kept,
        }
    }

    /// What the process has logged so far.
    pub(crate) fn log(&self) -> Vec<Value> {
        self.log.lock().unwrap().clone()
    }

    /// The process's number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Memory that the process holds, files left out, in bytes.
    pub(crate) fn memory(&self) -> usize {
        let path = format!("/proc/{}/status", self.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kib: usize = line
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        kib * 1024
    }

    pub(crate) fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("http://{}{path}", self.api))
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.client
            .get(format!("http://{}{path}", self.api))
            .send()
            .await
            .unwrap()
    }

    /// Asks for a chat.
    pub(crate) async fn chat(&self, body: &Value) -> Response {
        self.post("/v1/chat/completions")
            .body(body.to_string())
            .send()
            .await
            .unwrap()
    }

    pub(crate) async fn load(&self) -> LoadReport {
        serde_json::from_slice(&self.get("/v1/load").await.bytes().await.unwrap()).unwrap()
    }

    pub(crate) async fn ready(&self) -> bool {
        let answer = self.admin("/readyz").await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// Asks the admin port.
    pub(crate) async fn admin(&self, path: &str) -> reqwest::Result<Response> {
        let url = format!("http://{}{path}", self.admin);
        self.client.get(url).send().await
    }

    /// The sum of a metric over its labels; those that do not match `label` are left out.
    pub(crate) async fn metric(&self, name: &str, label: &str) -> f64 {
        let text = self.admin("/metrics").await.unwrap().text().await.unwrap();
        let values = text.lines().filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            let (found, labels) = key.split_once('{').unwrap_or((key, ""));
            (found == name && labels.contains(label)).then(|| value.parse::<f64>().unwrap())
        });
        values.sum()
    }

    /// Waits until nothing runs or waits.
    pub(crate) async fn at_rest(&self) {
        self.until("at rest", async || self.load().await.queue_length() == 0)
            .await;
    }

    /// Waits for a condition.
    pub(crate) async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let end = clock::now() + PATIENCE;
        while !condition().await {
            assert!(clock::now() < end, "waited too long until {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        let pid = self.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
    }

    /// Waits for the end of the process.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let end = clock::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(clock::now() < end, "the worker does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The folder of the demo checkpoint.
pub(crate) fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/llava-shapes")
}

/// A greedy chat of one turn that goes on to its last token.
pub(crate) fn ask(text: &str, tokens: u64) -> Value {
    json!({
        "messages": [{"role": "user", "content": text}],
        "temperature": 0, "max_tokens": tokens, "logit_bias": {"2": -100},
    })
}

/// The same with an image of one colour before the text.
pub(crate) fn ask_about(colour: u8, text: &str, tokens: u64) -> Value {
    let mut body = ask(text, tokens);
    body["messages"][0]["content"] = json!([
        {"type": "image_url", "image_url": {"url": data_uri(colour)}},
        {"type": "text", "text": text},
    ]);
    body
}

/// A picture of one colour.
pub(crate) fn png(colour: u8) -> Vec<u8> {
    let picture = image::RgbImage::from_pixel(40, 30, image::Rgb([colour, 90, 255 - colour]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

pub(crate) fn data_uri(colour: u8) -> String {
    format!("data:image/png;base64,{}", base64(&png(colour)))
}

/// The text of a whole answer.
pub(crate) async fn text(response: Response) -> String {
    let status = response.status();
    let body: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    assert!(status.is_success(), "{body}");
    body["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned()
}
