//! A request before it goes anywhere: its body, and what routing reads in it.

pub(crate) mod facts;
pub(crate) mod image_size;
pub(crate) mod intake;
pub(crate) mod patience;
pub(crate) mod scan;
