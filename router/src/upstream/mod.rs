//! Towards the workers: connections, kept open and driven without tasks of their own.

pub(crate) mod ask;
pub(crate) mod exchange;
pub(crate) mod link;
