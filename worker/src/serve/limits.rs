//! What one request may cost, and how long a client may take. Each has a flag,
//! a default, and a code of its own when it is exceeded.

use std::time::Duration;

use clap::Args;

use crate::image;

/// Bounds on requests.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Longest body in bytes (413 `body_too_large`)
    #[arg(long, default_value_t = protocol::limit::BODY, value_name = "BYTES")]
    pub max_body_bytes: usize,

    /// Bytes of request bodies and fetched images that are held at once, until they are read (503 `buffers_full`)
    #[arg(long, default_value_t = 512 << 20, value_name = "BYTES")]
    pub max_buffered: usize,

    /// Characters of text in one request, before tokenising; each message and each part counts 16 more (400 `prompt_too_long`)
    #[arg(long, default_value_t = 262_144, value_name = "CHARACTERS")]
    pub max_prompt_characters: usize,

    /// Images in one request (400 `too_many_images`)
    #[arg(long, default_value_t = 16, value_name = "IMAGES")]
    pub max_images: usize,

    /// Pixels of one image (400 `image_too_large`)
    #[arg(long, default_value_t = 40_000_000, value_name = "PIXELS")]
    pub max_image_pixels: u64,

    /// Bytes that images of all requests may take while they are decoded, and again until they are encoded; more wait
    #[arg(long, default_value_t = 512 << 20, value_name = "BYTES")]
    pub image_memory: usize,

    /// Tokens of one answer; requests that ask for more get this many
    #[arg(long, default_value_t = 4096, value_name = "TOKENS")]
    pub max_output_tokens: usize,

    /// Answers to one request, `n` (400 `invalid_value`)
    #[arg(long, default_value_t = 8, value_name = "ANSWERS")]
    pub max_answers: usize,

    /// Requests that wait for a slot (429 `queue_full`)
    #[arg(long, default_value_t = 64, value_name = "REQUESTS")]
    pub max_queue_length: usize,

    /// Longest wait for a slot in seconds (503 `queue_timeout`)
    #[arg(long, default_value = "30", value_parser = seconds, value_name = "SECONDS")]
    pub queue_timeout: Duration,

    /// Open connections; more wait to be accepted
    #[arg(long, default_value_t = 2048, value_name = "CONNECTIONS")]
    pub max_connections: usize,

    /// Longest time for the head of a request, and between requests of a connection
    #[arg(long, default_value = "30", value_parser = seconds, value_name = "SECONDS")]
    pub header_timeout: Duration,

    /// Longest pause within a body (408 `body_timeout`)
    #[arg(long, default_value = "10", value_parser = seconds, value_name = "SECONDS")]
    pub body_stall_timeout: Duration,

    /// Longest time for a whole body (408 `body_timeout`)
    #[arg(long, default_value = "120", value_parser = seconds, value_name = "SECONDS")]
    pub body_timeout: Duration,

    /// Longest time in which a client takes no byte of its answer
    #[arg(long, default_value = "30", value_parser = seconds, value_name = "SECONDS")]
    pub write_stall_timeout: Duration,

    /// Pause after which a stream gets a comment to keep it open
    #[arg(long, default_value = "15", value_parser = seconds, value_name = "SECONDS")]
    pub keep_alive: Duration,
}

impl LimitArgs {
    /// Bounds on one image.
    #[must_use]
    pub(super) fn image(&self) -> image::Limits {
        let mut limits = image::Limits {
            bytes: self.max_body_bytes,
            pixels: self.max_image_pixels,
            ..image::Limits::default()
        };
        limits.memory = limits.memory.min(self.image_memory as u64);
        limits
    }
}

#[cfg(test)]
impl LimitArgs {
    /// Those of a program without flags.
    pub(super) fn usual() -> Self {
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            limits: LimitArgs,
        }
        <Flags as clap::Parser>::parse_from(["test"]).limits
    }
}

/// Seconds, with a fraction if need be.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| format!("`{text}` is not a number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| format!("`{text}` seconds: {error}"))
}
