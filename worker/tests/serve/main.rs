//! What `llava-worker serve` promises, asked of the real program with a small
//! real checkpoint over real sockets.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod accepted;
mod answers;
mod checkpoint;
mod documentation;
mod drain;
mod lease;
mod leaving;
mod limits;
mod llava;
mod memory;
mod refusals;
mod sdks;
mod start;
mod telling;
mod troubles;
mod worker;
