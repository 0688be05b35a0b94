//! Which models there are and which workers serve them: from Kubernetes, or fixed
//! by the command line.

pub(crate) mod fixed;
pub(crate) mod index;
pub(crate) mod kubernetes;
pub(crate) mod lease;
pub(crate) mod record;
pub(crate) mod staged;
