//! What the router promises to those who use it, each tried on a router and
//! workers that talk over loopback.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod api;
mod bad_input;
mod bounds;
mod failures;
mod leaving;
mod llava;
mod overload;
mod restart;
mod streams;
mod support;
mod traces;
