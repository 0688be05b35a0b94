//! The API port: which path leads where, and what each endpoint answers.

pub(crate) mod keys;
pub(crate) mod llava;
pub(crate) mod models;
pub(crate) mod page;
pub(crate) mod service;
pub(crate) mod workers;
