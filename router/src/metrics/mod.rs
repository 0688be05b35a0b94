//! What is counted and timed. The hot path touches atomics only; names and
//! labels come in when somebody asks.

pub(crate) mod collect;
pub(crate) mod histogram;
pub(crate) mod meter;

pub(crate) use meter::Meter;
