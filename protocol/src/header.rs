//! HTTP header names beyond the standard ones, in lower case as HTTP/2 wants them.

/// Identifies a request in the logs of every process it passes; made by the
/// first process when the client sends none.
pub const REQUEST_ID: &str = "x-request-id";
/// The worker's [`LoadReport`](crate::load::LoadReport) as compact JSON, on
/// every answer of a worker. The router removes it before the client sees it.
pub const LOAD: &str = "x-llava-load";
/// The worker that answered, set by the router for those who debug dispatch.
pub const WORKER: &str = "x-llava-worker";
/// How many attempts came before this one, set by the router towards workers.
pub const ATTEMPT: &str = "x-llava-attempt";
/// Milliseconds to wait before a retry; OpenAI's SDKs prefer it to `retry-after`.
pub const RETRY_AFTER_MS: &str = "retry-after-ms";
/// Seconds after which the client gives up; the router never takes longer.
pub const REQUEST_TIMEOUT: &str = "x-request-timeout";
