//! Encoded images of earlier requests, bounded in bytes, least recently used
//! out first. A chat shows the same image again with every turn.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::key::ImageHash;
use crate::input::ImageFeatures;

/// Shared between those who prepare requests and the engine.
#[derive(Clone, Debug)]
pub struct VisionCache {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    entries: HashMap<ImageHash, Entry>,
    bytes: usize,
    limit: usize,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    features: ImageFeatures,
    used: u64,
}

impl VisionCache {
    /// A cache of at most `limit` bytes; 0 keeps nothing.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                entries: HashMap::new(),
                bytes: 0,
                limit,
                clock: 0,
            })),
        }
    }

    /// What is kept under `hash`.
    #[must_use]
    pub fn get(&self, hash: &ImageHash) -> Option<ImageFeatures> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clock += 1;
        let now = inner.clock;
        let entry = inner.entries.get_mut(hash)?;
        entry.used = now;
        Some(entry.features.clone())
    }

    /// Keeps `features`, unless they alone exceed the limit.
    pub fn insert(&self, hash: ImageHash, features: ImageFeatures) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = features.bytes();
        if bytes > inner.limit || inner.entries.contains_key(&hash) {
            return;
        }
        while inner.bytes + bytes > inner.limit {
            let oldest = inner.entries.iter().min_by_key(|(_, entry)| entry.used);
            let Some(oldest) = oldest.map(|(hash, _)| *hash) else {
                break;
            };
            if let Some(entry) = inner.entries.remove(&oldest) {
                inner.bytes -= entry.features.bytes();
            }
        }
        inner.clock += 1;
        inner.bytes += bytes;
        let used = inner.clock;
        inner.entries.insert(hash, Entry { features, used });
    }

    /// Bytes kept.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .bytes
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;

    #[test]
    fn the_least_recently_used_image_goes_first_and_bytes_stay_within_the_limit() {
        let image = || ImageFeatures::new(Tensor::zeros((2, 4), DType::F32, &Device::Cpu).unwrap());
        let cache = VisionCache::new(64);
        cache.insert([1; 32], image());
        cache.insert([2; 32], image());
        assert!(cache.get(&[1; 32]).is_some());
        cache.insert([3; 32], image());
        assert!(cache.get(&[2; 32]).is_none());
        assert!(cache.get(&[1; 32]).is_some());
        assert_eq!(cache.bytes(), 64);
        let nothing = VisionCache::new(0);
        nothing.insert([1; 32], image());
        assert_eq!(nothing.bytes(), 0);
    }
}
