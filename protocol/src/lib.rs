//! What travels between clients, the router and the workers: types, framing and
//! names. No I/O happens here, so that every side and every test can share it.

pub mod error;
pub mod header;
pub mod limit;
pub mod llava;
pub mod load;
pub mod nul;
pub mod openai;
pub mod port;
pub mod sse;
