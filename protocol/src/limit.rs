//! Limits that processes on the way of a request share: what one lets through by
//! default, the next one takes.

/// Longest body of a request in bytes.
pub const BODY: usize = 32 << 20;
