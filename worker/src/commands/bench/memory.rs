//! The most memory that the process held while it loaded and ran: its own
//! pages, without those of mapped files, which the system drops and reads
//! again as it likes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often it is looked at. A look takes some 20 µs.
const EVERY: Duration = Duration::from_millis(5);

/// Watches the process until it is asked for the peak.
#[derive(Debug)]
pub(super) struct Watch {
    peak: Arc<AtomicUsize>,
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Watch {
    /// Begins to watch.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn start() -> std::io::Result<Self> {
        let peak = Arc::new(AtomicUsize::new(0));
        let (stop, stopped) = mpsc::channel();
        let seen = peak.clone();
        let look = move || {
            loop {
                seen.fetch_max(anonymous().unwrap_or(0), Ordering::Relaxed);
                if stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("memory".to_owned())
            .spawn(look)?;
        Ok(Self {
            peak,
            thread: Some((stop, thread)),
        })
    }

    /// The most bytes seen, where Linux tells them.
    pub(super) fn finish(mut self) -> Option<usize> {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            // It cannot panic; if it did, what it saw until then still stands.
            let _ = thread.join();
        }
        Some(self.peak.load(Ordering::Relaxed)).filter(|peak| *peak > 0)
    }
}

/// Bytes of the process that belong to no file.
fn anonymous() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = |key: &str| -> Option<usize> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some((kib("RssAnon:")? + kib("RssShmem:")?) * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_that_was_held_and_given_back_is_in_the_peak() {
        let watch = Watch::start().unwrap();
        let before = anonymous().unwrap();
        let held = vec![1u8; 64 << 20];
        // The watch has looked at least once when its peak has grown.
        while watch.peak.load(Ordering::Relaxed) < before + (60 << 20) {
            std::thread::yield_now();
        }
        drop(std::hint::black_box(held));
        assert!(watch.finish().unwrap() >= before + (60 << 20));
    }
}
