//! The way of a request: limits, a slot, the attempts, and the answer's bytes
//! relayed as they come.

pub(crate) mod attempt;
pub(crate) mod beat;
pub(crate) mod body;
pub(crate) mod cut;
pub(crate) mod forward;
pub(crate) mod headers;
pub(crate) mod held;
pub(crate) mod relay;
