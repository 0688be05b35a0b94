//! Panics as entries of the log. The standard library writes them beside it,
//! where programs that read JSON lines do not look, and with their message,
//! which may quote what users wrote: a slice names the text that it cuts.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;

use tracing::field;

/// From now on a panic is an error in the log: its thread, its place, and its
/// message if that is fixed in the code. `RUST_BACKTRACE=1` adds a backtrace.
pub fn into_log() {
    std::panic::set_hook(Box::new(log));
}

fn log(panic: &PanicHookInfo<'_>) {
    let fixed = panic.payload().downcast_ref::<&'static str>();
    let backtrace = Backtrace::capture();
    let traced = backtrace.status() == BacktraceStatus::Captured;
    tracing::error!(
        thread = std::thread::current().name().unwrap_or("unnamed"),
        at = panic.location().map(field::display),
        cause = fixed.unwrap_or(&"left out: its text is made of data"),
        backtrace = traced.then(|| field::display(&backtrace)),
        "a thread panicked"
    );
}
