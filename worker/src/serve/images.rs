//! The images of a request: where their bytes come from, and what the engine
//! gets of them. Headers are judged before anything is decoded, and an image
//! that an earlier request brought is not decoded again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ask::room;
use super::blocking::blocking;
use super::buffers::Share;
use super::limits::LimitArgs;
use super::refusal::Refusal;
use super::remote::RemoteImages;
use crate::config::ModelConfig;
use crate::engine::{Failure, ImageContent, ImageHash, ImageInput, Prepared, VisionCache};
use crate::image::{self, DecodeError, Exceeded, ImageProcessor};

/// Bytes that one permit stands for.
const UNIT: u64 = 1 << 16;

/// Turns the bytes of images into the engine's input.
#[derive(Clone)]
pub(super) struct ImageReader {
    /// How the checkpoint wants pictures.
    pub processor: Arc<ImageProcessor>,
    /// How many positions they take.
    pub config: Arc<ModelConfig>,
    /// Encoded images of earlier requests.
    pub cache: VisionCache,
    /// Fetches remote images, if that is allowed.
    pub remote: Option<Arc<RemoteImages>>,
    /// Pixels of images that are not encoded yet.
    waiting: Arc<Mutex<HashMap<ImageHash, Weak<Prepared>>>>,
    /// Bytes that all decoding may take.
    decoding: Arc<Semaphore>,
    /// Bytes that all pixels may take which wait for the tower.
    prepared: Arc<Semaphore>,
    /// Of each.
    units: u32,
    /// How long a request waits for them.
    patience: Duration,
    /// Longest sequence in tokens.
    context: usize,
    limits: image::Limits,
}

/// An image's bytes, and where it stands in the request.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// The field, such as `messages[0].content[1].image_url`.
    pub param: String,
    /// The file.
    pub bytes: Bytes,
}

impl ImageReader {
    /// A reader for one checkpoint.
    #[must_use]
    pub(super) fn new(
        processor: ImageProcessor,
        config: ModelConfig,
        cache: VisionCache,
        remote: Option<RemoteImages>,
        context: usize,
        limits: &LimitArgs,
    ) -> Self {
        let units = u32::try_from(limits.image_memory as u64 / UNIT)
            .unwrap_or(u32::MAX)
            .max(1);
        Self {
            processor: Arc::new(processor),
            config: Arc::new(config),
            cache,
            remote: remote.map(Arc::new),
            waiting: Arc::default(),
            decoding: Arc::new(Semaphore::new(units as usize)),
            prepared: Arc::new(Semaphore::new(units as usize)),
            units,
            patience: limits.queue_timeout,
            context,
            limits: limits.image(),
        }
    }

    /// The bytes behind an image URL of a request; those that are fetched count in its `share`.
    ///
    /// # Errors
    /// 400 that names the field, 503 when there is no memory for what is fetched.
    pub(super) async fn fetch(
        &self,
        param: &str,
        url: &str,
        share: &mut Share,
    ) -> Result<Source, Refusal> {
        let bytes = if let Some(rest) = strip_scheme(url, "data:") {
            data_uri(param, rest)?
        } else if let Some(remote) = &self.remote {
            let fetched = remote.fetch(url, share).await;
            fetched.map_err(|error| match error.code() {
                Some(code) => Refusal::invalid(code, Some(param), error.to_string()),
                None => Refusal::buffers_full(),
            })?
        } else {
            return Err(Refusal::invalid(
                "remote_images_disabled",
                Some(param),
                "this server fetches no remote images: send the image as a data: URI",
            ));
        };
        Ok(Source {
            param: param.to_owned(),
            bytes,
        })
    }

    /// Prepares a request's images for the engine, and keeps what the request holds meanwhile.
    ///
    /// # Errors
    /// 400 that names the image and what is wrong with it.
    pub(super) async fn read<H: Send + 'static>(
        &self,
        held: H,
        sources: Vec<Source>,
    ) -> Result<(H, Vec<ImageInput>), Refusal> {
        let images = sources.len();
        let this = self.clone();
        let headers = move || {
            let headers = sources
                .into_iter()
                .map(|source| this.header(source, images));
            headers.collect::<Result<Vec<_>, _>>()
        };
        let (mut held, sized) = blocking(held, headers).await?;
        let sized = sized?;
        // Images that leave no room for an answer are not decoded.
        let tokens = sized.iter().map(|image| image.tokens).sum();
        room(self.context, tokens, "messages")?;
        let missing = sized.iter().filter(|image| self.known(image).is_none());
        let missing: HashMap<_, _> = missing.map(|image| (image.hash, image.prepared)).collect();
        // For all at once: requests that each held a part would wait for one another.
        let share = self.reserve(&self.prepared, missing.values().sum()).await?;
        let share = Arc::new(share);
        let mut inputs = Vec::with_capacity(images);
        for sized in sized {
            inputs.push(match self.known(&sized) {
                Some(known) => known,
                None => {
                    let memory = self.reserve(&self.decoding, sized.held).await?;
                    let (this, share) = (self.clone(), Arc::clone(&share));
                    let decode = move || this.decode(&sized, images, memory, share);
                    let decoded;
                    (held, decoded) = blocking(held, decode).await?;
                    decoded?
                }
            });
        }
        Ok((held, inputs))
    }

    /// What an earlier request has brought of the same image: the tower's work, or its pixels.
    fn known(&self, sized: &Sized) -> Option<ImageInput> {
        let content = match self.cache.get(&sized.hash) {
            Some(features) if features.tokens() == sized.tokens => ImageContent::Features(features),
            _ => ImageContent::Pixels(self.waiting().get(&sized.hash)?.upgrade()?),
        };
        Some(ImageInput {
            hash: sized.hash,
            tokens: sized.tokens,
            content,
        })
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<ImageHash, Weak<Prepared>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn header(&self, source: Source, images: usize) -> Result<Sized, Refusal> {
        let header = image::read_header(&source.param, &source.bytes, &self.limits)
            .map_err(|error| refuse(&source.param, &error))?;
        let mut hash = Sha256::new();
        // The same file is processed in another way among others than alone.
        hash.update([u8::from(images > 1)]);
        hash.update(&source.bytes);
        let grid = self.processor.grid(header.size, images);
        let original = (header.size.width, header.size.height);
        Ok(Sized {
            hash: hash.finalize().into(),
            tokens: self.config.image_tokens(original, grid),
            held: header.held,
            prepared: self.processor.bytes(grid),
            source,
        })
    }

    /// Waits for so many of the bytes that images of all requests may take; whoever needs
    /// more than there are gets them all.
    async fn reserve(
        &self,
        memory: &Arc<Semaphore>,
        bytes: u64,
    ) -> Result<OwnedSemaphorePermit, Refusal> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let memory = Arc::clone(memory).acquire_many_owned(units.min(self.units));
        tokio::time::timeout(self.patience, memory)
            .await
            .map_err(|_| Failure::Expired(self.patience))?
            .map_err(|_| Refusal::internal())
    }

    fn decode(
        &self,
        sized: &Sized,
        images: usize,
        memory: OwnedSemaphorePermit,
        share: Arc<OwnedSemaphorePermit>,
    ) -> Result<ImageInput, Refusal> {
        let param = &sized.source.param;
        let picture = image::decode(param, &sized.source.bytes, &self.limits)
            .map_err(|error| refuse(param, &error))?;
        let pixels = self.processor.process(&picture, images);
        drop(picture);
        drop(memory);
        let tokens = self.config.image_tokens(pixels.original, pixels.grid);
        let pixels = Arc::new(Prepared::new(pixels, share));
        let mut waiting = self.waiting();
        waiting.retain(|_, pixels| pixels.strong_count() > 0);
        waiting.insert(sized.hash, Arc::downgrade(&pixels));
        Ok(ImageInput {
            hash: sized.hash,
            tokens,
            content: ImageContent::Pixels(pixels),
        })
    }
}

struct Sized {
    hash: ImageHash,
    tokens: usize,
    /// Bytes that decoding it holds.
    held: u64,
    /// Bytes of the tiles that are made of it.
    prepared: u64,
    source: Source,
}

fn refuse(param: &str, error: &DecodeError) -> Refusal {
    let code = match error {
        DecodeError::TooLarge { limit, .. } => match limit {
            Exceeded::Bytes { .. } => "image_file_too_large",
            Exceeded::Side { .. } | Exceeded::Pixels { .. } => "image_too_large",
            Exceeded::Memory { .. } => "image_memory_exceeded",
        },
        DecodeError::UnknownFormat { .. } | DecodeError::Unsupported { .. } => {
            "image_format_unsupported"
        }
        DecodeError::Damaged { .. } => "image_damaged",
    };
    Refusal::invalid(code, Some(param), error.to_string())
}

fn strip_scheme<'a>(url: &'a str, scheme: &str) -> Option<&'a str> {
    let (start, rest) = url.split_at_checked(scheme.len())?;
    start.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// The bytes of `data:<type>;base64,<data>`; the type is not believed.
fn data_uri(param: &str, rest: &str) -> Result<Bytes, Refusal> {
    let bad = |message| Refusal::invalid("invalid_data_uri", Some(param), message);
    let (kind, data) = rest
        .split_once(',')
        .ok_or_else(|| bad("the data: URI has no comma"))?;
    if !kind.trim_end().to_ascii_lowercase().ends_with(";base64") {
        return Err(bad("the data: URI must be `data:image/…;base64,…`"));
    }
    base64_bytes(data).ok_or_else(|| bad("the data of the data: URI is not base64"))
}

/// Base64 as clients send it: with or without padding, of either alphabet.
pub(super) fn base64_bytes(data: &str) -> Option<Bytes> {
    let data = data.trim();
    let unpadded = data.trim_end_matches('=');
    STANDARD
        .decode(data)
        .or_else(|_| STANDARD_NO_PAD.decode(unpadded))
        .or_else(|_| URL_SAFE_NO_PAD.decode(unpadded))
        .ok()
        .map(Bytes::from)
}

#[cfg(test)]
impl ImageReader {
    /// That of the demo checkpoint.
    pub(super) fn demo(limits: &LimitArgs) -> Self {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let dir = root.join("../models/llava-shapes");
        let model = ModelConfig::read(&dir, None).unwrap();
        let processor = image::ProcessorConfig::read(&dir, &model).unwrap();
        let processor = ImageProcessor::new(processor);
        Self::new(processor, model, VisionCache::new(0), None, 10_000, limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(colour: u8) -> Source {
        let picture = ::image::RgbImage::from_pixel(40, 30, ::image::Rgb([colour, 90, 7]));
        let mut bytes = std::io::Cursor::new(Vec::new());
        picture
            .write_to(&mut bytes, ::image::ImageFormat::Png)
            .unwrap();
        Source {
            param: "image".to_owned(),
            bytes: bytes.into_inner().into(),
        }
    }

    fn pixels(input: &ImageInput) -> &Arc<Prepared> {
        match &input.content {
            ImageContent::Pixels(pixels) => pixels,
            ImageContent::Features(_) => panic!("nothing has been encoded"),
        }
    }

    #[tokio::test]
    async fn requests_that_show_the_same_image_share_its_pixels() {
        let reader = ImageReader::demo(&LimitArgs::usual());
        let first = reader
            .read((), vec![picture(1), picture(2), picture(1)])
            .await;
        let ((), first) = first.unwrap();
        assert!(Arc::ptr_eq(pixels(&first[0]), pixels(&first[2])));
        assert!(!Arc::ptr_eq(pixels(&first[0]), pixels(&first[1])));
        let ((), second) = reader.read((), vec![picture(2), picture(3)]).await.unwrap();
        assert!(Arc::ptr_eq(pixels(&first[1]), pixels(&second[0])));
        drop((first, second));
        reader.read((), vec![picture(4)]).await.unwrap();
        assert_eq!(reader.waiting().len(), 1, "what is gone is forgotten");
    }

    #[tokio::test]
    async fn pixels_wait_until_others_are_encoded_and_not_for_ever() {
        let limits = LimitArgs {
            // The tiles of one of the demo's pictures, and a bit.
            image_memory: 150_000,
            queue_timeout: Duration::ZERO,
            ..LimitArgs::usual()
        };
        let reader = ImageReader::demo(&limits);
        let ((), first) = reader.read((), vec![picture(1)]).await.unwrap();
        let refused = reader.read((), vec![picture(2)]).await.unwrap_err();
        assert_eq!(refused.code(), "queue_timeout");
        // It needs none of its own.
        assert!(reader.read((), vec![picture(1)]).await.is_ok());
        drop(first);
        assert!(reader.read((), vec![picture(2)]).await.is_ok());
    }

    #[test]
    fn data_uris_are_read_as_clients_write_them() {
        for uri in [
            "image/png;base64,aGk=",
            "image/PNG;charset=x;BASE64,aGk",
            ";base64,aGk=",
        ] {
            assert_eq!(data_uri("p", uri).unwrap(), "hi", "{uri}");
        }
        for uri in ["image/png,aGk=", "image/png;base64", "image/png;base64,!!"] {
            assert_eq!(
                data_uri("p", uri).unwrap_err().code(),
                "invalid_data_uri",
                "{uri}"
            );
        }
    }
}
