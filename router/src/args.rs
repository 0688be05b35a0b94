//! The command line: where to listen, where workers come from, and every limit
//! and timeout with its default.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, ValueEnum};
use shell::args::ShellArgs;

/// Dispatches OpenAI-style and LLaVA-style requests to the least loaded worker
#[derive(Clone, Debug, Parser)]
#[command(name = "llava-router", version)]
pub struct RouterArgs {
    /// Address of the API
    #[arg(long, default_value = "0.0.0.0:8000", value_name = "ADDR")]
    pub listen: SocketAddr,

    /// A worker of a fixed table, instead of those that Kubernetes knows; repeat for several
    #[arg(long, value_name = "URL")]
    pub worker: Vec<String>,

    /// The model that every worker of the fixed table serves; asked from them when absent
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,

    /// Serve only the LlavaDeployments of this namespace; all namespaces when absent
    #[arg(
        long,
        env = "LLAVA_NAMESPACE",
        value_name = "NAME",
        conflicts_with = "worker"
    )]
    pub namespace: Option<String>,

    /// How a worker is chosen
    #[arg(long, value_enum, default_value_t)]
    pub dispatch: Dispatch,

    /// File of API keys, one `name sha256-in-hex` a line; anyone may call when absent
    #[arg(long, value_name = "FILE")]
    pub api_keys: Option<PathBuf>,

    /// File with a key that workers ask for; they are sent it as `Authorization: Bearer`
    #[arg(long, value_name = "FILE")]
    pub worker_key: Option<PathBuf>,

    /// Collector that takes spans of requests by OTLP over HTTP, such as http://collector:4318
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<http::Uri>,

    /// Do not serve the web page at /
    #[arg(long)]
    pub no_page: bool,

    /// Limits
    #[command(flatten)]
    pub limits: Limits,

    /// Timeouts
    #[command(flatten)]
    pub timeouts: Timeouts,

    /// Logs and admin port
    #[command(flatten)]
    pub shell: ShellArgs,
}

/// How a worker is chosen among those that may take a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Dispatch {
    /// The one with the shortest estimated queue for its slots
    #[default]
    ShortestQueue,
    /// At random, weighted by slots, as LLaVA's `lottery`
    Lottery,
}

/// What bounds memory and queues.
#[derive(Args, Clone, Debug)]
pub struct Limits {
    /// Largest request body
    #[arg(long, default_value = "32MiB", value_parser = bytes, value_name = "BYTES")]
    pub max_body: u64,

    /// Least bytes per second that a request's body brings, by what comes in each --body-timeout; 0 asks for any byte
    #[arg(long, default_value = "1KiB", value_parser = bytes, value_name = "BYTES")]
    pub min_body_rate: u64,

    /// Largest sum of request bodies held at once
    #[arg(long, default_value = "512MiB", value_parser = bytes, value_name = "BYTES")]
    pub max_buffered: u64,

    /// Largest sum of the bodies of requests that wait for one model; a quarter of --max-buffered when absent
    #[arg(long, value_parser = bytes, value_name = "BYTES")]
    pub max_waiting: Option<u64>,

    /// Open client connections
    #[arg(long, default_value_t = 16_384, value_name = "N")]
    pub max_connections: usize,

    /// Requests per model that wait for a slot
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub max_queued: usize,

    /// Requests per model that wait while it has no worker at all
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub max_held: usize,

    /// Slots of a worker that does not report its own
    #[arg(long, default_value_t = 1_024, value_name = "N")]
    pub default_slots: u32,
}

/// How long each phase may take, in seconds.
#[derive(Args, Clone, Debug)]
pub struct Timeouts {
    /// For a client to send its request's head
    #[arg(long, default_value = "30", value_parser = seconds, value_name = "SECONDS")]
    pub header_timeout: Duration,

    /// For a part of a request's body to come: as much as --min-body-rate asks for in this time
    #[arg(long, default_value = "30", value_parser = seconds, value_name = "SECONDS")]
    pub body_timeout: Duration,

    /// For a worker to accept a connection
    #[arg(long, default_value = "2", value_parser = seconds, value_name = "SECONDS")]
    pub connect_timeout: Duration,

    /// From sending a request to the first byte of its answer
    #[arg(long, default_value = "300", value_parser = seconds, value_name = "SECONDS")]
    pub first_byte_timeout: Duration,

    /// Between two pieces of an answer
    #[arg(long, default_value = "120", value_parser = seconds, value_name = "SECONDS")]
    pub chunk_timeout: Duration,

    /// For a client to take a piece of its answer
    #[arg(long, default_value = "120", value_parser = seconds, value_name = "SECONDS")]
    pub write_timeout: Duration,

    /// For a whole request, its body included; a client may ask for less with the header x-request-timeout
    #[arg(long, default_value = "1800", value_parser = seconds, value_name = "SECONDS")]
    pub request_timeout: Duration,

    /// For a slot to become free
    #[arg(long, default_value = "60", value_parser = seconds, value_name = "SECONDS")]
    pub queue_timeout: Duration,

    /// For the first worker of a model that is scaled to zero or starting
    #[arg(long, default_value = "600", value_parser = seconds, value_name = "SECONDS")]
    pub hold_timeout: Duration,

    /// Silence on a stream after which a keep-alive comment is sent
    #[arg(long, default_value = "15", value_parser = seconds, value_name = "SECONDS")]
    pub keep_alive: Duration,

    /// Between two looks at a worker's load and health, give or take a fifth
    #[arg(long, default_value = "0.5", value_parser = seconds, value_name = "SECONDS")]
    pub poll_interval: Duration,

    /// For a worker to answer such a look
    #[arg(long, default_value = "1", value_parser = seconds, value_name = "SECONDS")]
    pub poll_timeout: Duration,

    /// Over which the share of a new worker rises to its full size
    #[arg(long, default_value = "10", value_parser = seconds, value_name = "SECONDS")]
    pub warm_up: Duration,

    /// From SIGTERM until new connections are refused
    #[arg(long, default_value = "5", value_parser = seconds, value_name = "SECONDS")]
    pub settle: Duration,

    /// From SIGTERM until streams that still run are cut
    #[arg(long, default_value = "300", value_parser = seconds, value_name = "SECONDS")]
    pub drain_timeout: Duration,
}

impl Limits {
    /// One model without workers leaves room for the others.
    pub(crate) fn max_waiting_bytes(&self) -> u64 {
        self.max_waiting.unwrap_or(self.max_buffered / 4)
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "write seconds above zero, such as 30 or 0.5".to_owned())
}

fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match &text[digits.len()..] {
        "" | "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    scale
        .zip(digits.parse::<u64>().ok())
        .and_then(|(scale, number)| number.checked_mul(scale))
        .ok_or_else(|| "write bytes, such as 32MiB or 65536".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_parse() {
        let args = RouterArgs::parse_from(["llava-router"]);
        assert_eq!(args.limits.max_body, protocol::limit::BODY as u64);
        assert_eq!(args.timeouts.poll_interval, Duration::from_millis(500));
    }

    #[test]
    fn sizes_and_times_that_make_no_sense_are_refused() {
        assert!(bytes("12 apples").is_err());
        assert!(bytes("99999999999GiB").is_err());
        assert!(seconds("-1").is_err());
        assert!(seconds("0").is_err());
        assert!(seconds("soon").is_err());
    }
}
