//! Towards the workers: HTTP/1.1 on connections without tasks or buffers of their own.
//!
//! A general client keeps a buffer for reading, one for writing and a channel for each
//! connection: 20 KiB for a stream that says nothing. What the router sends is all
//! there before it is sent, and what it reads goes on at once; so it needs none of them.

pub(crate) mod ask;
mod decode;
pub(crate) mod exchange;
mod head;
pub(crate) mod link;
