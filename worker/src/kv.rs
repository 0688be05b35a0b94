//! Keys and values of the sequences that are being answered: a fixed number of
//! slots, each with room for a fixed number of tokens. On the CPU they lie in
//! the panels that the kernels read and their memory is taken from the system
//! only as it fills, and can be given back; on other devices they are candle tensors.

use crate::kernels::PANEL;
use crate::kernels::attention::{self, HeadCache, Query, SlotCache};
use crate::ops::on_cpu;
use candle_core::{D, DType, Device, Result, Tensor};

/// The cache of all layers.
#[derive(Debug)]
pub struct KvCache {
    shape: KvShape,
    store: Store,
    lengths: Vec<usize>,
    /// Positions of each slot whose memory may have been taken from the system.
    taken: Vec<usize>,
    capacity: usize,
}

/// What a cache is made for.
#[derive(Debug, Clone)]
pub(crate) struct KvShape {
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) window: Option<usize>,
}

impl KvShape {
    /// Bytes that one token takes in all layers.
    pub(crate) fn bytes_per_token(&self, device: &Device, dtype: DType) -> usize {
        let head = if device.is_cpu() {
            HeadCache::bytes_per_position(self.head_dim)
        } else {
            2 * self.head_dim * dtype.size_in_bytes()
        };
        self.layers * self.kv_heads * head
    }
}

/// Which rows of a batch belong to which slot, and where they stand.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) spans: Vec<Span>,
    /// `[rows, head_dim / 2]`.
    pub(crate) cos: Vec<f32>,
    /// `[rows, head_dim / 2]`.
    pub(crate) sin: Vec<f32>,
}

/// Rows of one sequence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) slot: usize,
    /// Position of the first row in its sequence.
    pub(crate) start: usize,
    /// First row in the batch.
    pub(crate) row: usize,
    /// Number of rows.
    pub(crate) count: usize,
}

#[derive(Debug)]
enum Store {
    /// By slot: heads `[layers * kv_heads]`.
    Panels(Vec<SlotCache>),
    /// By layer.
    Tensors(Vec<LayerTensors>),
}

/// One layer's keys and values on a device, each `[slots, kv_heads, tokens, head_dim]`.
#[derive(Debug)]
pub(crate) struct LayerTensors {
    keys: Tensor,
    values: Tensor,
}

/// The slots that one run of the decoder writes to and reads.
#[derive(Debug)]
pub(crate) struct KvView<'a> {
    shape: &'a KvShape,
    seen: Seen<'a>,
}

#[derive(Debug)]
enum Seen<'a> {
    /// The slots of the run's spans, in their order.
    Panels(Vec<&'a mut SlotCache>),
    /// All slots.
    Tensors(&'a [LayerTensors]),
}

impl KvCache {
    pub(crate) fn new(
        shape: &KvShape,
        slots: usize,
        capacity: usize,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let store = if device.is_cpu() {
            let heads = shape.layers * shape.kv_heads;
            let slot = |_| SlotCache::new(heads, capacity, shape.head_dim);
            Store::Panels((0..slots).map(slot).collect())
        } else {
            let layer = |_| LayerTensors::new(shape, slots, capacity, device, dtype);
            Store::Tensors((0..shape.layers).map(layer).collect::<Result<_>>()?)
        };
        Ok(Self {
            shape: shape.clone(),
            store,
            lengths: vec![0; slots],
            taken: vec![0; slots],
            capacity,
        })
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens that one slot has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens that `slot` holds.
    pub fn len(&self, slot: usize) -> usize {
        self.lengths[slot]
    }

    /// Whether no slot holds a token.
    pub fn is_empty(&self) -> bool {
        self.lengths.iter().all(|length| *length == 0)
    }

    /// Forgets all but the first `tokens` of `slot`; 0 frees it.
    pub fn truncate(&mut self, slot: usize, tokens: usize) {
        self.lengths[slot] = self.lengths[slot].min(tokens);
    }

    /// Gives the memory of all but the first `tokens` of `slot` back to the system, as far as
    /// the slot holds nothing there. Fewer than a panel's tokens are not worth asking.
    pub fn give_back(&mut self, slot: usize, tokens: usize) {
        let kept = tokens.max(self.lengths[slot]);
        if let Store::Panels(slots) = &mut self.store
            && self.taken[slot] >= kept + PANEL
        {
            slots[slot].give_back(kept);
            self.taken[slot] = kept;
        }
    }

    /// Makes `to` hold the first `tokens` of `from`, so that sequences with the
    /// same beginning compute it once.
    ///
    /// # Errors
    /// `from` holds fewer tokens, or the device failed.
    pub fn copy_prefix(&mut self, from: usize, to: usize, tokens: usize) -> Result<()> {
        if tokens > self.lengths[from] {
            candle_core::bail!(
                "slot {from} holds {} tokens, not the {tokens} to copy",
                self.lengths[from]
            );
        }
        if from != to {
            self.taken[to] = self.taken[to].max(tokens);
            self.copy(from, to, tokens)?;
        }
        self.lengths[to] = tokens;
        Ok(())
    }

    fn copy(&mut self, from: usize, to: usize, tokens: usize) -> Result<()> {
        match &mut self.store {
            Store::Panels(slots) => {
                if let Ok([from, to]) = slots.get_disjoint_mut([from, to]) {
                    to.copy_prefix(from, tokens);
                }
            }
            Store::Tensors(layers) => {
                for LayerTensors { keys, values } in layers {
                    for tensor in [keys, values] {
                        let prefix = tensor.narrow(0, from, 1)?.narrow(2, 0, tokens)?;
                        let prefix = prefix.force_contiguous()?;
                        write(tensor, to, 0, &prefix)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// What each of several runs works on; no slot is in two of them. Caches on
    /// a device are not taken apart: there all spans are one run's.
    pub(crate) fn views(&mut self, runs: &[Vec<Span>]) -> Vec<KvView<'_>> {
        for span in runs.iter().flatten() {
            let taken = &mut self.taken[span.slot];
            *taken = (*taken).max(span.start + span.count);
        }
        let shape = &self.shape;
        let view = |seen| KvView { shape, seen };
        match &mut self.store {
            Store::Panels(slots) => {
                let mut slots: Vec<_> = slots.iter_mut().map(Some).collect();
                runs.iter()
                    .map(|spans| {
                        let taken = spans.iter().filter_map(|span| slots[span.slot].take());
                        view(Seen::Panels(taken.collect()))
                    })
                    .collect()
            }
            Store::Tensors(layers) => vec![view(Seen::Tensors(layers))],
        }
    }

    pub(crate) fn advance(&mut self, spans: &[Span]) {
        for span in spans {
            self.lengths[span.slot] = span.start + span.count;
        }
    }
}

impl LayerTensors {
    fn new(
        shape: &KvShape,
        slots: usize,
        capacity: usize,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let shape = (slots, shape.kv_heads, capacity, shape.head_dim);
        Ok(Self {
            keys: Tensor::zeros(shape, dtype, device)?,
            values: Tensor::zeros(shape, dtype, device)?,
        })
    }
}

impl KvView<'_> {
    /// Rotates queries and keys of `qkv` `[rows, (heads + 2 kv_heads) * head_dim]`,
    /// stores keys and values of `layer`, and attends: `[rows, heads * head_dim]`.
    pub(crate) fn attend(&mut self, layer: usize, qkv: &Tensor, rows: &Rows) -> Result<Tensor> {
        let count = qkv.dims2()?.0;
        let shape = self.shape;
        match &mut self.seen {
            Seen::Panels(slots) => {
                let query = Query {
                    heads: shape.heads,
                    kv_heads: shape.kv_heads,
                    head_dim: shape.head_dim,
                    window: shape.window,
                    rows,
                };
                let part = layer * shape.kv_heads..(layer + 1) * shape.kv_heads;
                let mut heads: Vec<_> = slots
                    .iter_mut()
                    .map(|slot| slot.heads(part.clone()))
                    .collect();
                on_cpu(qkv, &[count, shape.heads * shape.head_dim], |qkv, out| {
                    attention::attend_spans(&query, &mut heads, qkv, out);
                })
            }
            Seen::Tensors(layers) => attend_tensors(shape, &layers[layer], qkv, rows),
        }
    }
}

/// Writes `[1, kv_heads, tokens, head_dim]` into a slot from `position` on.
fn write(store: &Tensor, slot: usize, position: usize, part: &Tensor) -> Result<()> {
    store
        .narrow(0, slot, 1)?
        .slice_set(&part.contiguous()?, 2, position)
}

/// Attention by candle's operations, sequence by sequence.
fn attend_tensors(
    shape: &KvShape,
    LayerTensors { keys, values }: &LayerTensors,
    qkv: &Tensor,
    rows: &Rows,
) -> Result<Tensor> {
    let (heads, kv_heads, dim) = (shape.heads, shape.kv_heads, shape.head_dim);
    let (device, dtype) = (qkv.device(), qkv.dtype());
    let half = dim / 2;
    let mut outputs = Vec::with_capacity(rows.spans.len());
    for span in &rows.spans {
        let part = qkv.narrow(0, span.row, span.count)?;
        let angles = |table: &[f32]| {
            let table = &table[span.row * half..(span.row + span.count) * half];
            Tensor::from_slice(table, (span.count, half), device)?.to_dtype(dtype)
        };
        let (cos, sin) = (angles(&rows.cos)?, angles(&rows.sin)?);
        let split = |first: usize, heads: usize| {
            part.narrow(1, first * dim, heads * dim)?
                .reshape((1, span.count, heads, dim))?
                .transpose(1, 2)?
                .contiguous()
        };
        let query = candle_nn::rotary_emb::rope(&split(0, heads)?, &cos, &sin)?;
        let key = candle_nn::rotary_emb::rope(&split(heads, kv_heads)?, &cos, &sin)?;
        write(keys, span.slot, span.start, &key)?;
        write(
            values,
            span.slot,
            span.start,
            &split(heads + kv_heads, kv_heads)?,
        )?;
        let end = span.start + span.count;
        let stored = |store: &Tensor| {
            store
                .narrow(0, span.slot, 1)?
                .narrow(2, 0, end)?
                .unsqueeze(2)?
                .expand((1, kv_heads, heads / kv_heads, end, dim))?
                .reshape((1, heads, end, dim))
        };
        let scores = (query.matmul(&stored(keys)?.t()?)? * (dim as f64).powf(-0.5))?;
        let scores =
            scores
                .to_dtype(DType::F32)?
                .broadcast_add(&mask(shape.window, span, device)?)?;
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(dtype)?;
        let attended = weights.matmul(&stored(values)?)?;
        outputs.push(
            attended
                .transpose(1, 2)?
                .reshape((span.count, heads * dim))?,
        );
    }
    Tensor::cat(&outputs, 0)
}

/// `[rows, positions]`: 0 where a row may look, minus infinity elsewhere.
fn mask(window: Option<usize>, span: &Span, device: &Device) -> Result<Tensor> {
    let end = span.start + span.count;
    let mut mask = vec![f32::NEG_INFINITY; span.count * end];
    for (row, line) in mask.chunks_mut(end).enumerate() {
        let sight = attention::sight(span.start + row, window);
        line[sight.first..sight.end].fill(0.0);
    }
    Tensor::from_vec(mask, (span.count, end), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(window: Option<usize>) -> KvShape {
        KvShape {
            layers: 1,
            heads: 4,
            kv_heads: 2,
            head_dim: 10,
            window,
        }
    }

    fn batch(spans: Vec<Span>) -> (Rows, Tensor) {
        let count: usize = spans.iter().map(|span| span.count).sum();
        let angle = |i: usize| (i as f32 * 0.37).sin();
        let rows = Rows {
            spans,
            cos: (0..count * 5).map(angle).collect(),
            sin: (0..count * 5).map(|i| angle(i + 3)).collect(),
        };
        let values: Vec<f32> = (0..count * 80)
            .map(|i| (i as f32 * 1.7).sin() * 2.0)
            .collect();
        (
            rows,
            Tensor::from_vec(values, (count, 80), &Device::Cpu).unwrap(),
        )
    }

    #[test]
    fn panels_and_tensors_attend_alike() {
        for window in [None, Some(7)] {
            let shape = shape(window);
            let mut panels = KvCache::new(&shape, 3, 64, &Device::Cpu, DType::F32).unwrap();
            let tensors = LayerTensors::new(&shape, 3, 64, &Device::Cpu, DType::F32).unwrap();
            let span = |slot, start, row, count| Span {
                slot,
                start,
                row,
                count,
            };
            for spans in [
                vec![span(0, 0, 0, 33), span(2, 0, 33, 5)],
                vec![span(2, 5, 0, 20), span(0, 33, 20, 1)],
                vec![span(1, 0, 0, 1)],
            ] {
                let (rows, qkv) = batch(spans);
                let mut views = panels.views(std::slice::from_ref(&rows.spans));
                let ours = views[0].attend(0, &qkv, &rows).unwrap();
                let theirs = attend_tensors(&shape, &tensors, &qkv, &rows).unwrap();
                let worst = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap();
                let worst = worst.to_scalar::<f32>().unwrap();
                assert!(worst < 1e-4, "window {window:?}: {worst}");
            }
        }
    }

    #[test]
    fn positions_one_by_one_give_the_bits_of_a_chunk() {
        for (heads, kv_heads, head_dim) in [(4, 4, 40), (6, 6, 32), (4, 2, 40)] {
            for window in [None, Some(20)] {
                let shape = KvShape {
                    layers: 1,
                    heads,
                    kv_heads,
                    head_dim,
                    window,
                };
                let width = (heads + 2 * kv_heads) * head_dim;
                let values: Vec<f32> = (0..70 * width).map(|i| (i as f32 * 1.7).sin()).collect();
                let angle = |i: usize| (i as f32 * 0.37).sin();
                let attended = |at_once: usize| {
                    let mut cache = KvCache::new(&shape, 1, 96, &Device::Cpu, DType::F32).unwrap();
                    let mut all = Vec::new();
                    for start in (0..70).step_by(at_once) {
                        let angles = start * head_dim / 2..(start + at_once) * head_dim / 2;
                        let rows = Rows {
                            spans: vec![Span {
                                slot: 0,
                                start,
                                row: 0,
                                count: at_once,
                            }],
                            cos: angles.clone().map(angle).collect(),
                            sin: angles.map(|i| angle(i + 3)).collect(),
                        };
                        let part = values[start * width..(start + at_once) * width].to_vec();
                        let qkv = Tensor::from_vec(part, (at_once, width), &Device::Cpu).unwrap();
                        let mut views = cache.views(std::slice::from_ref(&rows.spans));
                        let out = views[0].attend(0, &qkv, &rows).unwrap();
                        all.extend(out.flatten_all().unwrap().to_vec1::<f32>().unwrap());
                    }
                    all
                };
                assert_eq!(attended(1), attended(70), "{heads} {kv_heads} {window:?}");
            }
        }
    }

    #[test]
    fn what_is_given_back_is_not_what_a_slot_holds() {
        let shape = KvShape {
            head_dim: 40,
            ..shape(None)
        };
        let mut given = KvCache::new(&shape, 2, 4096, &Device::Cpu, DType::F32).unwrap();
        let mut kept = KvCache::new(&shape, 2, 4096, &Device::Cpu, DType::F32).unwrap();
        let attend = |cache: &mut KvCache, start, count| {
            let span = Span {
                slot: 1,
                start,
                row: 0,
                count,
            };
            let angle = |i: usize| (i as f32 * 0.37).sin();
            let rows = Rows {
                spans: vec![span],
                cos: (0..count * 20).map(angle).collect(),
                sin: (0..count * 20).map(|i| angle(i + 3)).collect(),
            };
            let values: Vec<f32> = (0..count * 320).map(|i| (i as f32 * 1.7).sin()).collect();
            let qkv = Tensor::from_vec(values, (count, 320), &Device::Cpu).unwrap();
            let out = cache.views(std::slice::from_ref(&rows.spans))[0].attend(0, &qkv, &rows);
            cache.advance(&rows.spans);
            let out = out.unwrap();
            out.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        for cache in [&mut given, &mut kept] {
            attend(cache, 0, 700);
            attend(cache, 700, 100);
        }
        given.truncate(1, 513);
        kept.truncate(1, 513);
        given.give_back(1, 0);
        given.give_back(0, 0);
        assert_eq!(given.taken, [0, 513]);
        for (start, count) in [(513, 1), (514, 200)] {
            assert_eq!(
                attend(&mut given, start, count),
                attend(&mut kept, start, count)
            );
        }
        assert_eq!(given.taken, [0, 714]);
    }
}
