//! Who gets the next request: estimates of queues, the health of workers, the
//! pool of one model with its waiting room, and the fleet of all pools.

pub(crate) mod admission;
pub(crate) mod budget;
pub(crate) mod estimate;
pub(crate) mod fleet;
pub(crate) mod health;
pub(crate) mod mean;
pub(crate) mod member;
pub(crate) mod pick;
pub(crate) mod pool;
pub(crate) mod replicas;
pub(crate) mod reservation;
pub(crate) mod room;
pub(crate) mod state;
pub(crate) mod weight;
