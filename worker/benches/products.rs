//! The worker's products beside candle's own at the shapes of a 7 B model, in one run, and
//! the rate at which this machine reads memory: what a product of one row is bound by.
//!
//! ```sh
//! cargo bench --package llava-worker --bench products
//! ```

#![allow(clippy::unwrap_used, reason = "a bench that fails is a failed bench")]

use std::hint::black_box;
use std::time::Duration;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{DType, Device, Module, Tensor};
use llava_worker::matmul::{Packed, Product};
use rayon::prelude::*;
use shell::clock;

const INPUTS: usize = 4096;
const OUTPUTS: usize = 11_008;

fn numbers(count: usize) -> Vec<f32> {
    // Exact in bf16, so that weights are packed as those of a checkpoint in bf16.
    let one = |i: usize| half::bf16::from_f32((i as f32 * 0.713).sin()).to_f32();
    (0..count).into_par_iter().map(one).collect()
}

/// The median of runs that together take a second or so.
fn median(mut run: impl FnMut()) -> Duration {
    let mut once = || {
        let start = clock::now();
        run();
        clock::now() - start
    };
    once();
    let first = once();
    let times = (1.0 / first.as_secs_f64()).clamp(3.0, 200.0) as usize;
    let mut all: Vec<_> = (0..times).map(|_| once()).collect();
    all.sort_unstable();
    all[all.len() / 2]
}

fn main() {
    let gigabytes = memory_rate();
    println!(
        "threads: {}; memory read: {gigabytes:.1} GB/s\n",
        rayon::current_num_threads()
    );
    println!("| rows x {INPUTS} x {OUTPUTS} | ms | GFLOP/s | GB/s of weights |");
    println!("|---|---|---|---|");
    let weights = numbers(INPUTS * OUTPUTS);
    let device = Device::Cpu;
    let tensor = Tensor::from_slice(&weights, (OUTPUTS, INPUTS), &device).unwrap();
    let ours: [(&str, Packed, f64); 3] = [
        ("bf16", Packed::dense(&weights, OUTPUTS, INPUTS), 2.0),
        (
            "int8",
            Packed::int8(&weights, OUTPUTS, INPUTS),
            1.0 + 2.0 / 64.0,
        ),
        (
            "int4",
            Packed::int4(&weights, OUTPUTS, INPUTS),
            0.5 + 2.0 / 32.0,
        ),
    ];
    let quantised =
        |kind| QMatMul::from_qtensor(QTensor::quantize(&tensor, kind).unwrap()).unwrap();
    let theirs = [
        ("candle Q8_0", quantised(GgmlDType::Q8_0), 34.0 / 32.0),
        ("candle Q4K", quantised(GgmlDType::Q4K), 144.0 / 256.0),
    ];
    let transposed = tensor.t().unwrap();
    let brain = tensor.to_dtype(DType::BF16).unwrap().t().unwrap();
    for rows in [1, 4, 16, 608] {
        let x = Tensor::from_vec(numbers(rows * INPUTS), (rows, INPUTS), &device).unwrap();
        let line = |name: &str, bytes: f64, time: Duration| {
            let products = (rows * INPUTS * OUTPUTS) as f64;
            let seconds = time.as_secs_f64();
            println!(
                "| {rows}, {name} | {:.2} | {:.0} | {:.1} |",
                seconds * 1e3,
                2.0 * products / seconds / 1e9,
                (INPUTS * OUTPUTS) as f64 * bytes / seconds / 1e9
            );
        };
        for (name, product, bytes) in &ours {
            let time = median(|| drop(black_box(product.multiply(&x).unwrap())));
            line(name, *bytes, time);
        }
        for (name, product, bytes) in &theirs {
            let time = median(|| drop(black_box(product.forward(&x).unwrap())));
            line(name, *bytes, time);
        }
        let time = median(|| drop(black_box(x.matmul(&transposed).unwrap())));
        line("candle f32", 4.0, time);
        if rows <= 16 {
            let x = x.to_dtype(DType::BF16).unwrap();
            let time = median(|| drop(black_box(x.matmul(&brain).unwrap())));
            line("candle bf16", 2.0, time);
        }
    }
}

/// GB/s of all threads reading a buffer beyond any cache.
fn memory_rate() -> f64 {
    let buffer = vec![1u64; 64 << 20];
    let time = median(|| {
        let sum: u64 = buffer
            .par_chunks(1 << 16)
            .map(|part| part.iter().sum::<u64>())
            .sum();
        black_box(sum);
    });
    (buffer.len() * 8) as f64 / time.as_secs_f64() / 1e9
}
