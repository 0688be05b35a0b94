//! Checkpoints in another form are the same models.

mod deltas;
mod layouts;
mod pickles;
